"""The attacks of minimal norm that follow a gradient: C&W, EAD, DDN and FMN."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch
from torch import nn

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.engine import NORMS

NETS = ("fashion-mnist-cnn", "fashion-mnist-cnn-linf")
FEW_STEPS = {"cw": {"steps": 60, "binary_search_steps": 5}, "cw-linf": {"steps": 40}, "ead": {"steps": 60}}
ALL = [
    ("ddn", "l2"), ("fmn", "linf"), ("fmn", "l2"), ("fmn", "l1"), ("fmn", "l0"), ("cw", "l2"),
    ("cw-linf", "linf"), ("ead", "l1"),
]  # fmt: skip
DISTANCE_FACTORS = [
    ("ddn", "l2", 1.01), ("fmn", "linf", 1.001), ("fmn", "l2", 1.001), ("fmn", "l1", 1.01),
    ("cw-linf", "linf", 1.05), ("ead", "l1", 1.06),
]  # fmt: skip


@pytest.mark.parametrize(("name", "norm", "factor"), DISTANCE_FACTORS)
@pytest.mark.parametrize("classes", [2, 10])
def test_minimal_norm_attacks_find_the_exact_distance_of_a_linear_model(name, norm, factor, classes):
    module, x = linear_model(classes=classes), gray_images(12)
    found = touchstone.attack(touchstone.wrap(module), x, None, name, norm=norm, quantize=False)
    exact = exact_distances(module, x, norm)
    assert found.success.all()
    assert torch.all(found.distance >= exact * (1 - 1e-3))
    assert float((found.distance / exact).median()) < factor


def test_cw_is_within_two_percent_of_the_exact_distance_with_fine_steps():
    module, x = linear_model(), gray_images(6)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "cw", learning_rate=0.001, steps=300, quantize=False
    )
    assert float((found.distance / exact_distances(module, x, "l2")).median()) < 1.02


def test_fmn_l0_distance_counts_changed_values():
    module, x = linear_model(), gray_images(6)
    found = touchstone.attack(touchstone.wrap(module), x, None, "fmn", norm="l0", quantize=False)
    changed = (found.images != x).flatten(1).sum(1)
    assert torch.equal(changed.double(), found.distance)
    assert changed.median() == 1


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_attack_fails_with_a_valid_image_on_a_constant_model(name, norm):
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, -1.0])

    x = gray_images(3)
    found = touchstone.attack(
        touchstone.wrap(Constant()), x, None, name, norm=norm, **FEW_STEPS.get(name, {})
    )
    assert not found.success.any()
    assert torch.isfinite(found.images).all()
    assert float((found.images - x).abs().mean()) < 0.2


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_targeted_attack_reaches_its_target_at_no_smaller_distance(name, norm):
    model = touchstone.wrap(module := linear_model(classes=4))
    x = gray_images(6)
    label = module(x).argmax(1)
    options = {"norm": norm, "quantize": False, **FEW_STEPS.get(name, {})}
    any_class = touchstone.attack(model, x, label, name, **options)
    target = (label + 2) % 4
    aimed = touchstone.attack(model, x, None, name, targets=target, **options)
    assert aimed.success.all()
    assert torch.equal(module(aimed.images).argmax(1), target)
    assert float((aimed.distance / any_class.distance).median()) >= 1


@pytest.mark.parametrize(("name", "norm"), ALL)
def test_rows_give_the_same_distance_alone_and_in_a_batch(name, norm):
    model, x = touchstone.wrap(linear_model(classes=5)), gray_images(5)
    options = {"norm": norm, "quantize": False, **FEW_STEPS.get(name, {})}
    together = touchstone.attack(model, x, None, name, seed=[4, 5, 6, 7, 8], **options)
    for i in (0, 4):
        alone = touchstone.attack(model, x[i : i + 1], None, name, seed=[4 + i], **options)
        assert torch.allclose(alone.distance, together.distance[i : i + 1], rtol=0.01)


@pytest.mark.parametrize("name", ["cw", "cw-linf", "ead"])
def test_found_images_have_at_least_the_requested_confidence(name):
    module, x = linear_model(classes=4), gray_images(4)
    label = module(x).argmax(1)
    found = touchstone.attack(
        touchstone.wrap(module), x, label, name, confidence=2.0, quantize=False, **FEW_STEPS[name]
    )
    logits = module(found.images)
    others = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    assert found.success.all()
    assert torch.all(others - logits.gather(1, label[:, None])[:, 0] >= 2 - 1e-3)


@pytest.mark.parametrize("name", ["cw", "cw-linf", "ead"])
def test_misclassification_counts_even_if_the_confidence_is_unreachable(name):
    module, x = nn.Sequential(*linear_model(classes=3), nn.Tanh()), gray_images(4)  # no margin exceeds 2
    label = module(x).argmax(1)
    found = touchstone.attack(
        touchstone.wrap(module), x, label, name, confidence=3.0, quantize=False, **FEW_STEPS[name]
    )
    assert torch.equal(module(found.images).argmax(1) != label, found.success)
    assert found.success.any()


@pytest.mark.parametrize(
    ("name", "scale", "fields"),
    [("cw", 1, {"binary_search_steps": 20}), ("cw-linf", 1e13, {"initial_const": 1e6, "largest_const": 1e6})],
)
def test_attack_with_overflowing_loss_weights_does_not_blame_the_model(name, scale, fields):
    module, x = linear_model(classes=3), gray_images(2)
    with torch.no_grad():
        module[1].weight.mul_(scale)
        module[1].bias.mul_(scale)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, name, steps=5, confidence=1e6, quantize=False, abort_early=False,
        **fields,
    )  # fmt: skip
    assert found.success.all()


def test_cw_abort_early_saves_queries_at_nearly_the_same_distance():
    model, x = touchstone.wrap(linear_model()), gray_images(4)
    fields = {"steps": 200, "initial_const": 0.1, "binary_search_steps": 2, "quantize": False}
    early = touchstone.attack(model, x, None, "cw", **fields)
    whole = touchstone.attack(model, x, None, "cw", abort_early=False, **fields)
    assert whole.queries.backward == 4 * 2 * 200
    assert early.queries.backward < 0.8 * whole.queries.backward
    assert torch.all(early.distance <= 1.05 * whole.distance)


def test_cw_succeeds_without_search_when_the_initial_constant_is_tiny():
    model, x = touchstone.wrap(linear_model()), gray_images(4)
    fields = {"steps": 100, "initial_const": 1e-7, "binary_search_steps": 1, "quantize": False}
    assert touchstone.attack(model, x, None, "cw", **fields).success.all()


@pytest.mark.parametrize(("net", "distance", "gradients"), [(NETS[0], 0.445, 422), (NETS[1], 2.1, 333)])
def test_cw_is_closer_than_adv_lib_with_two_thirds_of_its_gradients(net, distance, gradients):
    """Its mean distance and gradients per image with the same options; misclassified images are at 0."""
    model, x, y = touchstone.load(net), touchstone.samples()[:20], torch.arange(20) % 10
    fields = {"steps": 100, "learning_rate": 0.1, "binary_search_steps": 6, "quantize": False}
    found = touchstone.attack(model, x, y, "cw", **fields)
    assert found.success.all()
    assert found.distance.mean() < distance
    assert found.queries.backward < 2 / 3 * gradients * len(x)


def test_cw_linf_needs_few_extra_gradients_when_the_initial_constant_is_tiny():
    model, x = touchstone.wrap(linear_model()), gray_images(2)
    tiny, fair = (
        touchstone.attack(model, x, None, "cw-linf", initial_const=const, steps=20, quantize=False)
        for const in (1e-9, 0.01)
    )
    assert tiny.success.all()
    assert tiny.queries.backward < 1.5 * fair.queries.backward


def test_ead_l1_rule_is_no_further_in_l1_than_the_elastic_net_rule():
    model, x = touchstone.load(NETS[0]), touchstone.samples()[:8]
    options = {"steps": 50, "binary_search_steps": 4, "quantize": False}
    l1, net = (
        touchstone.attack(model, x, None, "ead", decision_rule=rule, **options) for rule in ("L1", "EN")
    )
    both = l1.success & net.success
    assert both.any()
    assert torch.all(l1.distance[both] <= net.distance[both] + 1e-6)


class PlainNetwork(nn.Module):
    """A model of the zoo as the peers take one."""

    def __init__(self, model):
        super().__init__()
        self.oracle = model.oracle

    def forward(self, x):
        prepared = self.oracle.preprocessing.apply(x)
        return self.oracle.module(prepared.contiguous(memory_format=torch.channels_last))


@pytest.fixture(scope="module")
def adv_lib():
    """Its logger and its data sets are not needed; what they import is not installed."""
    absent = [name for name in ("torchvision", "torchvision.models", "visdom") if name not in sys.modules]
    sys.modules.update({name: types.ModuleType(name) for name in absent})
    if "visdom" in absent:
        sys.modules["visdom"].Visdom = object
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attacks = pytest.importorskip("adv_lib.attacks")
    for name in absent:
        del sys.modules[name]
    return attacks


def distance_or_farthest(net, x, y, images, norm):
    """Distances; a failure is as far as can be."""
    with torch.no_grad():
        fooled = net(images).argmax(1) != y
    farthest = NORMS[norm].size(torch.maximum(x, 1 - x).double())
    return torch.where(fooled, NORMS[norm].size((images - x).double()), farthest)


def is_no_further(net, x, y, *, ours, theirs, norm):
    """Image by image, since a median over few images jumps."""
    ratio = distance_or_farthest(net, x, y, ours, norm) / distance_or_farthest(net, x, y, theirs, norm)
    return float(ratio.median()) <= 1.02


PEERS = [
    ("ddn", "l2", "ddn", {"levels": None, "steps": 60}, {"steps": 30}),
    ("fmn", "linf", "fmn", {"norm": float("inf"), "steps": 60}, {"steps": 30}),
    ("fmn", "l2", "fmn", {"norm": 2, "steps": 60}, {"steps": 30}),
    ("fmn", "l1", "fmn", {"norm": 1, "steps": 60}, {"steps": 40}),
    ("fmn", "l0", "fmn", {"norm": 0, "steps": 60}, {"steps": 30}),
    (
        "cw", "l2", "carlini_wagner_l2", {"max_iterations": 40, "binary_search_steps": 6},
        {"steps": 40, "binary_search_steps": 6},
    ),
]  # fmt: skip
"""Our method, its norm, their function, the options of theirs and of ours: where each step is one gradient,
ours needs fewer.
"""


@pytest.fixture(scope="module", params=NETS)
def zoo_sample(request):
    model, x = touchstone.load(request.param), touchstone.samples()[:16]
    net = PlainNetwork(model).eval()
    with torch.no_grad():
        return model, net, x, net(x).argmax(1)


@pytest.mark.peer
@pytest.mark.parametrize("pair", PEERS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_attack_distance_is_no_larger_than_adv_lib(adv_lib, zoo_sample, pair):
    name, norm, theirs, their_options, our_options = pair
    model, net, x, y = zoo_sample
    images = getattr(adv_lib, theirs)(net, x, y, **their_options).detach()
    ours = touchstone.attack(model, x, y, name, norm=norm, quantize=False, **our_options)
    assert is_no_further(net, x, y, ours=ours.images, theirs=images, norm=norm)


@pytest.mark.peer
def test_cw_linf_distance_is_no_larger_than_adv_lib_with_no_more_passes(adv_lib, zoo_sample):
    model, net, x, y = zoo_sample
    x, y, passes, shared = x[:3], y[:3], [], {"learning_rate": 0.1}
    with net.register_forward_hook(lambda _, args, __: passes.append(len(args[0]))):
        theirs = adv_lib.carlini_wagner_linf(net, x, y, max_iterations=25, **shared).detach()
    ours = touchstone.attack(model, x, y, "cw-linf", steps=25, smallest=1 / 255, quantize=False, **shared)
    assert is_no_further(net, x, y, ours=ours.images, theirs=theirs, norm="linf")
    assert ours.queries.backward <= sum(passes)


@pytest.mark.peer
def test_ead_distance_is_no_larger_than_foolbox_with_equal_passes(zoo_sample):
    """Three passes to a step of theirs, two to one of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    model, net, x, y = zoo_sample
    attack = foolbox.attacks.EADAttack(binary_search_steps=6, steps=40, decision_rule="L1")
    images = attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[0]
    black = (images == 0).flatten(1).all(1)  # what it returns where it failed
    images = torch.where(black.view(-1, 1, 1, 1), x, images)
    ours = touchstone.attack(model, x, y, "ead", steps=60, binary_search_steps=6, quantize=False)
    assert is_no_further(net, x, y, ours=ours.images, theirs=images, norm="l1")
