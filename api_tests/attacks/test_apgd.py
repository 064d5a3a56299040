"""The momentum attacks, APGD and AutoAttack, against mathematics and the authors' own code."""

from __future__ import annotations

import logging

import pytest
import torch

import touchstone
from api_tests.attacks.test_attacks import peer
from api_tests.support.linear_models import distances, greyish, linear_model
from touchstone.attacks import apgd
from touchstone.engine import NORMS, Goal, Threat
from touchstone.evaluation import attack_image
from touchstone.methods import find

EXACT = [
    ("bim", "linf", {}),
    ("bim", "l2", {}),
    ("mifgsm", "linf", {}),
    ("mifgsm", "l2", {}),
    ("nifgsm", "linf", {}),
    *(("apgd", norm, {"loss": loss}) for norm in ("linf", "l2", "l1") for loss in ("ce", "dlr")),
    *(("apgdt", norm, {}) for norm in ("linf", "l2", "l1")),
]


@pytest.mark.parametrize(
    ("name", "norm", "fields", "classes"),
    [(*one, 2) for one in EXACT] + [("apgdt", norm, {}, 5) for norm in ("linf", "l2")],
)
def test_succeeds_exactly_where_the_radius_exceeds_the_distance(name, norm, fields, classes):
    module = linear_model(classes=classes)
    x = greyish(16)
    distance = distances(module, x, norm)
    for factor in (0.999, 1.03):
        found = touchstone.attack(
            touchstone.wrap(module), x, None, name, norm=norm, eps=(factor * distance).tolist(),
            quantize=False, **fields,
        )  # fmt: skip
        assert found.success.all() if factor > 1 else not found.success.any()


def test_the_checks_of_a_hundred_steps_are_those_of_the_paper():
    assert sorted(apgd.checkpoints(100))[:8] == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_ratio_is_that_of_the_paper():
    logits = torch.tensor([[4.0, 1, 3, 0.5], [1, 4, 3, 0.5]])
    label = torch.tensor([0, 0])
    assert torch.allclose(
        apgd.ratio(Goal.of(label, targeted=False))(logits),
        torch.tensor([-(4 - 3) / (4 - 1), -(1 - 4) / (4 - 1)]),
    )
    spread = 4 - (1 + 0.5) / 2
    assert torch.allclose(
        apgd.ratio(Goal.of(label, targeted=True))(logits), torch.tensor([(4 - 3) / spread, (1 - 4) / spread])
    )


@pytest.mark.parametrize(("classes", "targeted", "margin"), [(2, False, 2), (2, True, -2), (3, True, -2)])
def test_with_few_classes_the_ratio_is_the_margin(classes, targeted, margin):
    logits = torch.tensor([[1.0, 3, 0]])[:, :classes]
    assert apgd.ratio(Goal.of(torch.tensor([0]), targeted=targeted))(logits).tolist() == [margin]


def test_a_row_that_stalls_halves_its_step_and_goes_back_to_its_best_point():
    x0 = torch.full((2, 1, 4, 4), 0.5)
    threat = Threat(x0, torch.tensor([0.1, 0.1]), NORMS["linf"])
    rule = apgd.Halving.start(threat, x0, 100, 0.75)
    x, grad, best = x0, torch.ones_like(x0), x0
    for step in range(23):
        loss = torch.tensor([float(step), 1.0 if step == 3 else 0.0])  # one rises each time, one only once
        best = x if step == 3 else best
        before, (x, rule) = x, rule.advance(threat, x, grad, loss)
    assert torch.allclose(rule.size, torch.tensor([0.2, 0.1]))
    assert torch.equal(rule.before[1], best[1])
    assert torch.equal(rule.before[0], before[0])


def test_restarts_and_mean_gradients_multiply_the_queries():
    model, x = touchstone.wrap(linear_model()), greyish(3)
    fields = {"eps": 0.001, "steps": 4, "early_stop": False}
    once = touchstone.attack(model, x, None, "apgd", **fields).queries
    often = touchstone.attack(model, x, None, "apgd", restarts=3, eot=5, **fields).queries
    assert once.backward == 3 * 4
    assert often.backward == 3 * 4 * 3 * 5


def test_an_image_leaves_once_one_of_its_targets_is_reached():
    module = linear_model(classes=10)
    x = greyish(4)
    eps = (4 * distances(module, x, "linf")).tolist()
    found = touchstone.attack(touchstone.wrap(module), x, None, "apgdt", eps=eps, steps=50, quantize=False)
    assert found.success.all()
    assert found.queries.backward < 4 * 9 * 10


class Rounded(torch.nn.Module):
    """A model behind a bit-depth reduction whose gradient is zero nearly everywhere."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module((x * 15).round() / 15)


def test_shattered_gradients_withstand_pgd_but_not_pgd_that_passes_straight_through():
    module = linear_model(classes=5)
    x = greyish(16)
    label = Rounded(module)(x).argmax(1)
    plain = touchstone.attack(touchstone.wrap(Rounded(module)), x, label, "pgd", eps=0.05)
    assert plain.success.float().mean() < 0.5
    through = touchstone.attack(touchstone.wrap(module), x, label, "pgd", eps=0.05, defence="bits-4")
    assert through.success.all()
    assert torch.all(Rounded(module)(through.images).argmax(1) != label)


@pytest.mark.parametrize("defence", ["jpeg-30", "bits-2", "median-3"])
def test_success_is_what_the_defended_model_says(defence):
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:12]
    found = touchstone.attack(model, x, None, "pgd", eps=0.03, steps=5, defence=defence)
    behind = touchstone.engine.defended
    sees = model.oracle.sight.see
    clean = model.oracle.module(sees(behind(x, defence))).argmax(1)
    assert torch.equal(
        model.oracle.module(sees(behind(found.images, defence))).argmax(1) != clean, found.success
    )
    assert found.success.any()


def test_autoattack_says_which_part_it_was_and_that_square_should_not_be_needed():
    class Hidden(torch.nn.Module):
        """Its gradient is that of another function."""

        def forward(self, x):
            z = linear_model()(x)
            return z.round(decimals=2) + 0 * x.flatten(1).sum(1, keepdim=True)

    model = touchstone.wrap(Hidden())
    pixels = (greyish(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    attack = find("autoattack").parse({"eps": 0.3, "steps": 5, "queries": 500})
    (verdict,), _ = touchstone.evaluation.run_here(
        [attack_image(attack, pixels, model.oracle, label=None, target=None, seed=0)], model.oracle
    )
    assert verdict.met
    assert verdict.found_by in ("apgd-ce", "square")
    assert ("black_box_beats_white_box" in verdict.diagnostics) == (verdict.found_by == "square")


def test_autoattack_runs_each_part_on_what_the_others_left():
    module = linear_model(classes=10)
    x = greyish(6)
    distance = distances(module, x, "linf")
    easy = torch.tensor([True, True, True, False, False, True])
    eps = torch.where(easy, 2 * distance, 0.2 * distance).tolist()
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "autoattack", eps=eps, steps=10, queries=50, quantize=False
    )
    assert torch.equal(found.success, easy)
    assert [part is None for part in found.found_by] == (~easy).tolist()
    assert found.queries.backward <= 4 * 10 + 2 * (10 + 9 * 10 + 9 * 10)


@pytest.mark.peer
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 10.0)])
def test_apgd_breaks_as_many_as_the_authors_code(norm, eps):
    peer("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack  # noqa: PLC0415

    model = touchstone.load("fashion-mnist-cnn-linf")
    x, y = touchstone.samples()[:60], torch.arange(60) % 10

    def net(images):
        return model.oracle.module(model.oracle.sight.see(images))

    theirs = APGDAttack(
        net, norm={"linf": "Linf"}.get(norm, norm.upper()), eps=eps, n_iter=50, seed=0,
        use_largereps=norm == "l1", logger=logging.getLogger("peer"), device="cpu",
    )  # fmt: skip
    broken = (net(theirs.perturb(x, y)).argmax(1) != y).sum()
    ours = touchstone.attack(model, x, y, "apgd", norm=norm, eps=eps, steps=50, quantize=False)
    assert ours.success.sum() >= broken - 1
