"""GeoDA against exact distances, and within its budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from benchmarks import rivals_black_box
from touchstone.attacks.geoda import GeoDA

NORMS = GeoDA.info.norms


@pytest.mark.parametrize("norm", NORMS)
def test_geoda_finds_nearly_the_exact_distance(norm):
    module, x = linear_model(), gray_images(6)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "geoda", norm=norm, queries=5_000, low=1, quantize=False
    )
    far = found.distance / exact_distances(module, x, norm)
    assert found.success.all()
    assert far.min() >= 1 - 1e-4
    assert far.median() < 1.2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [1, 2, 9, 40, 333])
@pytest.mark.parametrize("quantize", [True, False])
def test_geoda_stays_within_its_query_budget(norm, queries, quantize):
    model, x = touchstone.wrap(linear_model()), gray_images(5)
    asked = {"norm": norm, "queries": queries, "quantize": quantize}
    found = touchstone.attack(model, x, None, "geoda", **asked)
    rounding = len(x) * (2 + quantize)  # the looks before and after; files are queried once more
    assert found.queries.forward <= len(x) * queries + rounding
    if queries == 333:
        assert found.queries.forward >= len(x) * 300


class ConstantModel(nn.Module):
    """The same answer to everything."""

    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


@pytest.mark.parametrize("norm", NORMS)
def test_geoda_keeps_the_image_on_a_constant_model(norm):
    x = gray_images(2)
    found = touchstone.attack(touchstone.wrap(ConstantModel()), x, None, "geoda", norm=norm, starts=7)
    assert not found.success.any()
    assert torch.equal(found.images, x)
    assert found.queries.forward == len(x) * (7 + 2)


@pytest.mark.peer
@pytest.mark.parametrize("norm", NORMS)
def test_geoda_distance_is_no_larger_than_art(norm):
    pytest.importorskip("art.attacks")
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:3]
    pair = rivals_black_box._geoda_pair(norm, queries=500, images=3)
    found = rivals_black_box.compare(pair, model, "fashion-mnist-cnn", x, torch.arange(3))
    assert found["ours"]["distance"] <= 1.02 * found["theirs"]["distance"]
    assert found["ours"]["queries"] <= found["theirs"]["queries"] + 1
