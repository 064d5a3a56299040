"""Tensors of a file as the state of a network: names that training code changed, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from touchstone.errors import ModelUnusable
from touchstone.models.construction import build_outline, build_uninitialized
from touchstone.models.state_dicts import MisfitError, load_tensors


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def state(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.state_dict())


def assert_same(found: nn.Module, right: dict[str, Tensor]) -> None:
    assert set(found.state_dict()) == set(right)
    assert all(torch.equal(one, right[name]) for name, one in found.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model."]
)
def test_prefix_of_all_names_is_stripped(prefix: str) -> None:
    right = state(build())
    assert_same(load_tensors(build, {prefix + name: one for name, one in right.items()}), right)


def test_prefix_that_the_network_itself_has_is_kept() -> None:
    def wrapped() -> nn.Module:
        return nn.ModuleDict({"model": build()})

    right = state(wrapped())
    assert_same(load_tensors(wrapped, right), right)
    assert_same(load_tensors(wrapped, {f"module.{name}": one for name, one in right.items()}), right)


def test_counter_of_batches_may_be_missing_or_left_over() -> None:
    right = state(build())
    lacking = {name: one for name, one in right.items() if "num_batches" not in name}
    assert_same(load_tensors(build, lacking), right)
    assert_same(load_tensors(build, right | {"0.num_batches_tracked": torch.tensor(1)}), right)


def test_tied_weight_that_a_file_stores_once_is_found() -> None:
    right = state(Tied())
    lacking = {name: one for name, one in right.items() if name != "first.weight"}
    assert_same(load_tensors(Tied, lacking), right)


def test_misfit_lists_the_first_names_and_shapes() -> None:
    right = state(build())
    changed = {name: one for name, one in right.items() if name != "3.bias"}
    changed |= {f"head.{i}": torch.zeros(1) for i in range(6)} | {"0.weight": torch.zeros(2, 1, 1, 1)}
    with pytest.raises(MisfitError) as refused:
        load_tensors(build, changed)
    text = str(refused.value)
    assert "missing: 3.bias (2,)" in text
    assert "unexpected: head.0 (1,), head.1 (1,), head.2 (1,), head.3 (1,) and 2 more" in text
    assert "size mismatch: 0.weight is (2, 1, 1, 1), not (2, 3, 1, 1)" in text


class Versioned(nn.Linear):
    """Refuses a state without its version."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata["version"] == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_get_their_versions_which_safetensors_does_not_store() -> None:
    right = state(Versioned(2, 2))
    assert_same(load_tensors(lambda: Versioned(2, 2), right), right)


class Computing(nn.Module):
    """Reads numbers back while it is built, and has a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.linspace(0, 1, 3).tolist() + (torch.arange(3) + torch.tensor(1)).tolist()
        self.layer = nn.Linear(2, 2)
        nn.init.uniform_(self.layer.bias)
        nn.init.trunc_normal_(self.layer.weight)
        self.token = nn.Parameter(torch.randn(1, 2) * 0.1)
        self.register_buffer("index", torch.arange(3), persistent=False)


class Mixing(nn.Module):
    """Computes with a parameter and a number, which must be on one device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.sum = torch.cat([self.weight, torch.arange(3)])


def test_network_is_built_with_its_computed_buffers_and_without_random_numbers() -> None:
    right = state(Computing())
    before = torch.get_rng_state()
    net: Any = load_tensors(Computing, right)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(net, right)
    assert (net.rates, net.index.tolist()) == ([0, 0.5, 1, 1, 2, 3], [0, 1, 2])


def test_outline_takes_no_memory_and_its_constructors_may_compute() -> None:
    for kind in (Computing, Mixing):
        assert all(one.is_meta for one in build_outline(kind, 10).state_dict().values())
    huge = build_outline(lambda: nn.Linear(10**8, 10**8), 2)
    assert sum(one.numel() for one in huge.parameters()) == 10**16 + 10**8


def test_network_of_a_billion_layers_is_not_built() -> None:
    with pytest.raises(ModelUnusable, match="far more layers"):
        build_outline(lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9))), 2)


def test_error_of_a_constructor_is_one_of_the_model() -> None:
    with pytest.raises(ModelUnusable, match="cannot be built: ValueError: groups"):
        build_uninitialized(lambda: nn.Conv2d(3, 3, 1, groups=0))
