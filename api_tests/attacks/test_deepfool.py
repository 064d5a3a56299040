"""DeepFool, and SparseFool which uses it: a linear model's distances, and other libraries'."""

from __future__ import annotations

import sys
import warnings
from unittest.mock import MagicMock

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.engine import NORMS

ORDER = {"linf": float("inf"), "l2": 2}


class ConstantModel(torch.nn.Module):
    def forward(self, x):
        return torch.tensor([[1.0, 0.0, 0.0]]) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 676, 6)
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def images(net):
    return touchstone.samples()[:32]


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("overshoot", [0.002, 0.02])
def test_deepfool_distance_is_exact_up_to_the_overshoot_on_a_linear_model(norm, overshoot):
    module = linear_model(classes=10)
    x = gray_images(32)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "deepfool", norm=norm, overshoot=overshoot, quantize=False
    )
    exact = exact_distances(module, x, norm)
    assert found.success.all()
    assert torch.all(found.distance >= exact * (1 - 1e-4))
    assert torch.all(found.distance <= exact * (1 + overshoot) + 2e-5)


def test_misclassified_rows_cost_no_further_queries():
    found = touchstone.attack(
        touchstone.wrap(linear_model(classes=10)), gray_images(8), None, "deepfool", quantize=False
    )
    assert found.queries.backward == 8 * (9 + 2)  # the look that shows the success asks for the next step
    assert found.queries.forward == 8 * (1 + 1 + 2 + 1)


@pytest.mark.parametrize("classes", [2, 3, 30])
def test_deepfool_differentiates_only_the_requested_number_of_classes(classes):
    model = touchstone.wrap(linear_model(classes=classes))
    found = touchstone.attack(model, gray_images(1), None, "deepfool", candidates=5, quantize=False)
    assert found.success.all()
    rivals = min(classes, 5) - 1
    assert found.queries.backward == rivals + min(rivals, 2)


@pytest.mark.parametrize("method", ["deepfool", "sparsefool"])
def test_targeted_attack_succeeds_exactly_when_the_target_is_predicted(net, images, method):
    y = net(images).argmax(1)
    target = (y + 2) % 6
    found = touchstone.attack(touchstone.wrap(net), images, None, method, targets=target, quantize=False)
    assert torch.equal(net(found.images).argmax(1) == target, found.success)
    assert float(found.success.float().mean()) > 0.9


@pytest.mark.parametrize("method", ["deepfool", "sparsefool"])
def test_attack_fails_and_keeps_the_image_on_a_constant_model(method):
    x = gray_images(2)
    model = touchstone.wrap(ConstantModel())
    found = touchstone.attack(model, x, None, method, steps=3, quantize=False)
    assert not found.success.any()
    assert torch.allclose(found.images, x, atol=1e-6)


def test_deepfool_crosses_the_boundary_from_a_point_on_it():
    """Both logits are equal at the start: the first is the answer, and the way to the second is zero."""

    class Tie(torch.nn.Module):
        def forward(self, x):
            lead = (x - 0.5).flatten(1).sum(1)
            return torch.stack([-lead, lead], 1)

    found = touchstone.attack(
        touchstone.wrap(Tie()), torch.full((1, 1, 2, 2), 0.5), [0], "deepfool", quantize=False
    )
    assert found.success.all()
    assert float(found.distance.max()) < 1e-4


def test_sparsefool_changes_nearly_the_fewest_values_on_a_linear_model():
    """Greedy over the steepest values is optimal where one boundary is left to cross."""
    module = linear_model()
    x = gray_images(32)
    y = module(x).argmax(1)
    found = touchstone.attack(touchstone.wrap(module), x, y, "sparsefool", reach=1.0, quantize=False)
    weight = module[1].weight[1] - module[1].weight[0]
    lead = (module(x)[:, 1] - module(x)[:, 0]).detach()
    side = lead.sign()[:, None]
    flat = x.flatten(1)
    max_change = torch.where(weight * side > 0, flat, 1 - flat)
    gains = (max_change * weight.abs()).gather(1, weight.abs().argsort(descending=True).expand(32, -1))
    fewest = (gains.cumsum(1) < lead.abs()[:, None]).sum(1) + 1
    assert found.success.all()
    assert torch.all(found.distance - fewest <= 1)
    assert float((found.distance - fewest).mean()) < 0.3


@pytest.mark.parametrize("reach", [1.0, 3.0])
def test_sparsefool_changes_under_five_percent_of_the_values(net, images, reach):
    found = touchstone.attack(touchstone.wrap(net), images, None, "sparsefool", reach=reach, quantize=False)
    assert found.success.all()
    assert float(found.distance.median()) < 0.05 * images[0].numel()


@pytest.mark.peer
@pytest.mark.parametrize("norm", ORDER)
def test_deepfool_distances_are_no_larger_than_foolbox_and_adv_lib(net, images, norm, monkeypatch):
    for name in ("torchvision", "torchvision.transforms", "visdom"):  # adv-lib needs them elsewhere
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, MagicMock())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
        adv_lib = pytest.importorskip("adv_lib.attacks.deepfool")
        y = net(images).argmax(1)
        attack = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]
        fmodel = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        first, _, _ = attack(candidates=10)(fmodel, images, y, epsilons=None)
        second = adv_lib.df(net, images, y, steps=50, norm=ORDER[norm])
    ours = touchstone.attack(touchstone.wrap(net), images, y, "deepfool", norm=norm, quantize=False)
    assert ours.success.all()
    for theirs in (first, second):
        assert float(ours.distance.median()) <= 1.02 * float(NORMS[norm].size(theirs - images).median())
