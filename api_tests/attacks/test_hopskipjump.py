"""HopSkipJump against exact distances and against foolbox's, at equal queries."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.attacks.hopskipjump import HopSkipJump
from touchstone.engine import NORMS, Logits


@pytest.mark.parametrize(("norm", "most"), [("l2", 1.15), ("linf", 1.3)])
def test_hopskipjump_finds_nearly_the_exact_distance(norm, most):
    module, x = linear_model(classes=10), gray_images(6)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "hopskipjump", norm=norm, queries=5_000, quantize=False
    )
    far = found.distance / exact_distances(module, x, norm)
    assert found.success.all()
    assert far.min() >= 1 - 1e-4
    assert far.median() < most


@pytest.mark.parametrize("queries", [1, 2, 9, 40, 333])
@pytest.mark.parametrize("quantize", [True, False])
def test_hopskipjump_uses_its_query_budget_without_exceeding_it(queries, quantize):
    model, x = touchstone.wrap(linear_model()), gray_images(5)
    found = touchstone.attack(model, x, None, "hopskipjump", queries=queries, quantize=quantize)
    least = 0 if queries < 40 else len(x) * (queries - 25)
    rounding = len(x) * (2 + quantize)  # the looks before and after; files are queried once more
    assert least <= found.queries.forward <= len(x) * queries + rounding


def test_hopskipjump_distance_shrinks_with_more_queries():
    model, x = touchstone.wrap(linear_model()), gray_images(5)
    few, many = (touchstone.attack(model, x, None, "hopskipjump", queries=n) for n in (150, 1_500))
    assert few.success.all()
    assert many.success.all()
    assert many.distance.median() < 0.8 * few.distance.median()


class ConstantModel(nn.Module):
    """The same answer to everything."""

    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


@pytest.mark.parametrize("norm", HopSkipJump.info.norms)
def test_hopskipjump_keeps_the_image_on_a_constant_model(norm):
    x = gray_images(2)
    found = touchstone.attack(touchstone.wrap(ConstantModel()), x, None, "hopskipjump", norm=norm, starts=7)
    assert not found.success.any()
    assert torch.equal(found.images, x)
    assert found.queries.forward == len(x) * (7 + 2)


class LowContrastDetector(nn.Module):
    """Class 1 for images of hardly any contrast, which no random image has that differs in every pixel."""

    def forward(self, x):
        contrast = x.flatten(2).std(2).mean(1)
        return torch.stack([contrast, 0 * contrast + 0.05], 1)


def test_hopskipjump_starts_from_coarse_noise_when_pixel_noise_fails():
    found = touchstone.attack(
        touchstone.wrap(LowContrastDetector()),
        gray_images(3),
        torch.zeros(3, dtype=torch.long),
        "hopskipjump",
        queries=300,
    )
    assert found.success.all()


class QueryCounter(nn.Module):
    """A model of the zoo as foolbox takes one, which counts what it is asked."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.queried = oracle, 0

    def forward(self, x):
        self.queried += len(x)
        return self.oracle.answer([Logits(x)])[0].logits


@pytest.mark.peer
@pytest.mark.parametrize("norm", HopSkipJump.info.norms)
def test_hopskipjump_distance_is_no_larger_than_foolbox(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:10]
    net = QueryCounter(model.oracle).eval()
    label = net(x).argmax(1)
    torch.manual_seed(0)
    attack = foolbox.attacks.HopSkipJumpAttack(steps=4, constraint=norm)
    net.queried = 0
    theirs = attack.run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, label)
    found = touchstone.attack(
        model, x, label, "hopskipjump", norm=norm, queries=net.queried // len(x), quantize=False
    )
    assert found.success.all()
    assert found.distance.median() <= 1.05 * NORMS[norm].size(theirs - x).median()
