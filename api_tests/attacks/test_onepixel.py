"""One-pixel: what it finds against trying everything, and its bookkeeping."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone.attacks.onepixel import OnePixel, _paint, _pick_three


def biased_model(lead, classes=2):
    """A linear model with a lead of the first class, which few pixels can make up for."""
    module = linear_model(classes=classes)
    with torch.no_grad():
        module[1].bias[0] += lead
    return module


def one_pixel_reach(module, x):
    """Whether a single pixel of a linear model's image can flip it, by trying the best color of each."""
    weight = (module[1].weight[1] - module[1].weight[0]).detach().view(x.shape[1:])
    logits = module(x).detach()
    side = torch.where(logits[:, 0] > logits[:, 1], 1.0, -1.0).view(-1, 1, 1, 1)
    gain = torch.maximum(side * weight * (1 - x), -side * weight * x).sum(1).flatten(1).amax(1)
    return gain / (logits[:, 0] - logits[:, 1]).abs()


@pytest.mark.parametrize("strategy", ["rand1bin", "best1bin"])
@pytest.mark.parametrize("quantize", [False, True])
def test_onepixel_mostly_succeeds_if_one_pixel_suffices_and_never_otherwise(strategy, quantize):
    module = biased_model(4)
    x = gray_images(64)
    reach = one_pixel_reach(module, x)
    x = torch.cat([x[reach > 1.1][:6], x[reach < 0.98][:6]])
    can = torch.arange(12) < 6
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "onepixel", strategy=strategy, population=100, queries=3_000,
        quantize=quantize, seed=4,
    )  # fmt: skip
    assert not found.success[~can].any()
    assert found.success[can].float().mean() >= 0.8
    assert torch.all((found.images != x).any(1).flatten(1).sum(1) <= 1)
    assert torch.all(found.distance <= 3)


@pytest.mark.parametrize("queries", [1, 3, 49, 120, 333])
@pytest.mark.parametrize("quantize", [False, True])
def test_onepixel_uses_exactly_its_query_budget_on_a_robust_image(queries, quantize):
    module = biased_model(1e4)
    found = touchstone.attack(
        touchstone.wrap(module), gray_images(2), None, "onepixel", population=120, queries=queries,
        quantize=quantize,
    )  # fmt: skip
    assert not found.success.any()
    assert found.queries.forward == 2 * (queries + 2)
    assert torch.equal(
        (found.images != gray_images(2)).any(1).flatten(1).sum(1), torch.ones(2, dtype=torch.long)
    )


def test_more_pixels_fool_more_images():
    x = gray_images(16)
    success = [
        touchstone.attack(
            touchstone.wrap(biased_model(8, classes=10)), x, None, "onepixel", pixels=pixels, population=60,
            queries=600,
        )
        for pixels in (1, 5)
    ]  # fmt: skip
    assert success[0].success.sum() < success[1].success.sum()
    assert torch.all((success[1].images != x).any(1).flatten(1).sum(1) <= 5)


def test_evolution_beats_random_search_with_equal_queries():
    module, shape = biased_model(30), (3, 8, 8)
    hill = torch.exp(-0.1 * ((torch.arange(8) - 2.0).square()[:, None] + (torch.arange(8) - 5.0).square()))
    with torch.no_grad():
        module[1].weight[0] = 0
        module[1].weight[1] = (torch.tensor([1.0, -1, 0.5]).view(3, 1, 1) * hill).flatten()
    x = gray_images(8, shape=shape)
    options = {"quantize": False, "queries": 1_200, "seed": 4}
    evolved, drawn = (
        touchstone.attack(touchstone.wrap(module), x, None, "onepixel", population=population, **options)
        for population in (60, 1_200)
    )
    with torch.no_grad():
        gain = [(module(found.images) - module(x))[:, 1] for found in (evolved, drawn)]
    assert torch.all(gain[0] > gain[1])


def test_drawn_population_triples_are_distinct_and_uniform():
    chance = torch.rand(1, 6_000, 3, generator=torch.Generator().manual_seed(0))
    kinds, counts = torch.stack(_pick_three(chance, 5))[:, 0].T.unique(dim=0, return_counts=True)
    assert len(kinds) == 60
    assert all(len(set(kind)) == 3 for kind in kinds.tolist())
    assert torch.all((counts - 100).abs() < 50)


def test_crossover_still_changes_at_most_one_pixel():
    mixed = touchstone.attack(
        touchstone.wrap(linear_model()), gray_images(2), None, "onepixel", crossover=0.3, population=40,
        queries=200,
    )  # fmt: skip
    assert torch.all((mixed.images != gray_images(2)).any(1).flatten(1).sum(1) <= 1)
    assert OnePixel().crossover == 1


def test_every_pixel_can_be_painted():
    x = torch.zeros(600, 2, 3, 5)
    genes = torch.rand(600, 1, 4, generator=torch.Generator().manual_seed(1))
    painted = _paint(x, genes)
    assert torch.equal((painted != 0).any(1).flatten(1).sum(1), torch.ones(600, dtype=torch.long))
    assert (painted != 0).any(0).all()
    assert _paint(x[:1], torch.ones(1, 1, 4))[0, :, 2, 4].tolist() == [1, 1]
