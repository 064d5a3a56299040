"""The boundary attack against exact distances and against foolbox's, at equal queries."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.engine import NORMS, Logits


def test_boundary_attack_finds_nearly_the_exact_distance():
    module, x = linear_model(classes=10), gray_images(4)
    found = touchstone.attack(touchstone.wrap(module), x, None, "boundary", queries=2_500, quantize=False)
    far = found.distance / exact_distances(module, x, "l2")
    assert found.success.all()
    assert far.min() >= 1 - 1e-4
    assert far.median() < 1.5


@pytest.mark.parametrize("queries", [1, 2, 9, 13, 40, 333])
@pytest.mark.parametrize("quantize", [True, False])
def test_boundary_attack_uses_its_query_budget_without_exceeding_it(queries, quantize):
    model, x = touchstone.wrap(linear_model()), gray_images(5)
    found = touchstone.attack(model, x, None, "boundary", queries=queries, quantize=quantize)
    least = 0 if queries < 10 else len(x) * (queries - 1)
    rounding = len(x) * (2 + quantize)  # the looks before and after; files are queried once more
    assert least <= found.queries.forward <= len(x) * queries + rounding


def test_rows_give_the_same_result_alone_and_in_a_batch():
    """About half of the rows need a second start, and so have one query less left."""
    model, x = touchstone.wrap(linear_model()), gray_images(8)
    asked = {"queries": 120, "quantize": False}
    together = touchstone.attack(model, x, None, "boundary", seed=list(range(8)), **asked)
    for i in range(8):
        alone = touchstone.attack(model, x[i : i + 1], None, "boundary", seed=[i], **asked)
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1e-4)


class ConstantModel(nn.Module):
    """The same answer to everything."""

    def forward(self, x):
        return x.new_tensor([1.0, 0.0, 0.0]).repeat(len(x), 1)


def test_boundary_attack_keeps_the_image_on_a_constant_model():
    x = gray_images(2)
    found = touchstone.attack(touchstone.wrap(ConstantModel()), x, None, "boundary", starts=7)
    assert not found.success.any()
    assert torch.equal(found.images, x)
    assert found.queries.forward == len(x) * (7 + 2)


class QueryCounter(nn.Module):
    """A model of the zoo as foolbox takes one, which counts its queries."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.queried = oracle, 0

    def forward(self, x):
        self.queried += len(x)
        return self.oracle.answer([Logits(x)])[0].logits


@pytest.mark.peer
@pytest.mark.parametrize("quantize", [True, False])
def test_boundary_attack_distance_is_no_larger_than_foolbox(quantize):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:5]
    net = QueryCounter(model.oracle).eval()
    label = net(x).argmax(1)
    torch.manual_seed(0)
    attack = foolbox.attacks.BoundaryAttack(steps=300)
    net.queried = 0
    theirs = attack.run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, label)
    found = touchstone.attack(model, x, label, "boundary", queries=net.queried // len(x), quantize=quantize)
    assert found.success.all()
    assert found.distance.median() <= 1.05 * NORMS["l2"].size(theirs - x).median()
