"""GeoDA against exact distances, and within its budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import distances, greyish, linear_model
from benchmarks import rivals_black_box
from touchstone.attacks.geoda import GeoDA

NORMS = GeoDA.info.norms


@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_near_the_exact_distance(norm):
    module, x = linear_model(), greyish(6)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "geoda", norm=norm, queries=5_000, low=1, quantize=False
    )
    far = found.distance / distances(module, x, norm)
    assert found.success.all()
    assert far.min() >= 1 - 1e-4
    assert far.median() < 1.2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [1, 2, 9, 40, 333])
@pytest.mark.parametrize("quantize", [True, False])
def test_it_asks_no_more_than_its_budget(norm, queries, quantize):
    model, x = touchstone.wrap(linear_model()), greyish(5)
    asked = {"norm": norm, "queries": queries, "quantize": quantize}
    found = touchstone.attack(model, x, None, "geoda", **asked)
    settling = len(x) * (1 + 2 * quantize)  # the clean look; files are looked at twice more
    assert found.queries.forward <= len(x) * queries + settling
    if queries == 333:
        assert found.queries.forward >= len(x) * 300


class Constant(nn.Module):
    """The same answer to everything."""

    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_that_nothing_moves_leaves_the_image_as_it_is(norm):
    x = greyish(2)
    found = touchstone.attack(touchstone.wrap(Constant()), x, None, "geoda", norm=norm, starts=7)
    assert not found.success.any()
    assert torch.equal(found.images, x)
    assert found.queries.forward == len(x) * (7 + 2)


@pytest.mark.peer
@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_as_near_as_art_does(norm):
    pytest.importorskip("art.attacks")
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:3]
    pair = rivals_black_box.geoda(norm, queries=500, images=3)
    found = rivals_black_box.compared(pair, model, "fashion-mnist-cnn", x, torch.arange(3))
    assert found["ours"]["distance"] <= 1.02 * found["theirs"]["distance"]
    assert found["ours"]["queries"] <= found["theirs"]["queries"] + 1
