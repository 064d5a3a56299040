"""The boundary attack against exact distances and against foolbox's, at equal queries."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import distances, greyish, linear_model
from touchstone.engine import NORMS, Logits


def test_it_comes_near_the_exact_distance():
    module, x = linear_model(classes=10), greyish(4)
    found = touchstone.attack(touchstone.wrap(module), x, None, "boundary", queries=2_500, quantize=False)
    far = found.distance / distances(module, x, "l2")
    assert found.success.all()
    assert far.min() >= 1 - 1e-4
    assert far.median() < 1.5


@pytest.mark.parametrize("queries", [1, 2, 9, 13, 40, 333])
@pytest.mark.parametrize("quantize", [True, False])
def test_it_asks_no_more_than_its_budget_and_uses_it(queries, quantize):
    model, x = touchstone.wrap(linear_model()), greyish(5)
    found = touchstone.attack(model, x, None, "boundary", queries=queries, quantize=quantize)
    least = 0 if queries < 10 else len(x) * (queries - 1)
    settling = len(x) * (1 + 2 * quantize)  # the clean look; files are looked at twice more
    assert least <= found.queries.forward <= len(x) * queries + settling


def test_rows_with_different_budgets_left_walk_as_they_would_alone():
    """About half of the rows need a second start, and so have one query less for their walk."""
    model, x = touchstone.wrap(linear_model()), greyish(8)
    asked = {"queries": 120, "quantize": False}
    together = touchstone.attack(model, x, None, "boundary", seed=list(range(8)), **asked)
    for i in range(8):
        alone = touchstone.attack(model, x[i : i + 1], None, "boundary", seed=[i], **asked)
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1e-4)


class Constant(nn.Module):
    """The same answer to everything."""

    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


def test_a_model_that_nothing_moves_leaves_the_image_as_it_is():
    x = greyish(2)
    found = touchstone.attack(touchstone.wrap(Constant()), x, None, "boundary", starts=7)
    assert not found.success.any()
    assert torch.equal(found.images, x)
    assert found.queries.forward == len(x) * (7 + 2)


class Tally(nn.Module):
    """A model of the zoo as foolbox takes one, which counts what it is asked."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.asked = oracle, 0

    def forward(self, x):
        self.asked += len(x)
        return self.oracle.answer([Logits(x)])[0].logits


@pytest.mark.peer
@pytest.mark.parametrize("quantize", [True, False])
def test_it_comes_as_near_as_foolbox_does(quantize):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:5]
    net = Tally(model.oracle).eval()
    label = net(x).argmax(1)
    torch.manual_seed(0)
    attack = foolbox.attacks.BoundaryAttack(steps=300)
    net.asked = 0
    theirs = attack.run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, label)
    found = touchstone.attack(model, x, label, "boundary", queries=net.asked // len(x), quantize=quantize)
    assert found.success.all()
    assert found.distance.median() <= 1.05 * NORMS["l2"].size(theirs - x).median()
