"""Architectures of torchvision and transformers, with stubs of both: what is built, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save

from api_tests.support.library_stubs import StubConfig, install_torchvision, install_transformers, linear
from api_tests.support.own_models import build_manifest
from touchstone.errors import ModelUnusable
from touchstone.models.loader import build_module

CONFIG: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 4,
    "image_size": 8,
    "attn_implementation": "someone/kernels",
    "hub_revision": "main",
    "rope": {"theta": 1},
}
RANGE = {"range": [0, 1], "input": {"channels": 3}, "classes": None}
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def configured(**changes: Any) -> dict[str, Any]:
    named = {str(index): name for index, name in enumerate(("cat", "dog"))}
    return {**RANGE, "config": {**CONFIG, "id2label": named, **changes}}


def tensors(package: Any, **sizes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = StubConfig(**{"hidden_size": 4, "image_size": 8, **sizes})
    return dict(package.ViTForImageClassification(config).state_dict())


def test_classifier_of_transformers_is_built_from_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = install_transformers(monkeypatch)
    state = tensors(package)
    right = package.ViTForImageClassification(StubConfig(4))
    right.load_state_dict(state)
    for names in ("{}", "module.{}", "old_{}"):
        data = save({names.format(name): one for name, one in state.items()})
        manifest = build_manifest(data, **configured())
        assert (manifest.architecture, manifest.classes) == (
            "transformers/ViTForImageClassification",
            ("cat", "dog"),
        )
        net: Any = build_module(manifest, data)
        assert torch.equal(net(X), right(X).logits)
    assert net.network.config.others == {}, "only its own parameters reach a configuration"
    assert (package.utils.logging.level, package.utils.logging.bars) == (30, True)


def test_config_that_does_not_fit_the_weights_is_refused_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = install_transformers(monkeypatch)
    data = save(tensors(package))
    with pytest.raises(ModelUnusable, match=r"194,999,807 parameters.*missing: body.weight \(999999, 192\)"):
        build_module(build_manifest(data, **configured(hidden_size=999_999)), data)
    wide = save(tensors(package, num_labels=9))
    with pytest.raises(ModelUnusable, match=r"classifier.weight is \(9, 4\), not \(2, 4\)"):
        build_module(build_manifest(wide, **configured()), wide)
    more = save(tensors(package) | {"head.weight": torch.zeros(1)})
    with pytest.raises(ModelUnusable, match=r"unexpected: head\.weight"):
        build_module(build_manifest(more, **configured()), more)


def test_network_of_torchvision_is_built_by_name_without_its_auxiliary_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_torchvision(monkeypatch)
    right = linear(2)
    state = {name: one.bfloat16() for name, one in right.state_dict().items()}
    data = save(state | {"aux1.fc.weight": torch.zeros(3)})
    net = build_module(build_manifest(data, architecture="torchvision/linear"), data)
    right.load_state_dict(state)
    assert torch.equal(net(X), right(X)), "in single precision"
    with pytest.raises(ModelUnusable, match="no architecture named 'resnet50' for classification"):
        build_module(build_manifest(data, architecture="torchvision/resnet50"), data)


@pytest.mark.parametrize("package", ["torchvision", "transformers"])
def test_missing_package_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    fields = configured() if package == "transformers" else {"architecture": "torchvision/linear"}
    data = save(linear(2).state_dict())
    with pytest.raises(ModelUnusable, match=rf"touchstone-robustness\[{package}\]"):
        build_module(build_manifest(data, **fields), data)


def test_bare_name_is_answered_with_both_packages() -> None:
    data = save(linear(2).state_dict())
    with pytest.raises(ModelUnusable, match="torchvision/resnet50 or timm/resnet50"):
        build_module(build_manifest(data, architecture="resnet50"), data)
