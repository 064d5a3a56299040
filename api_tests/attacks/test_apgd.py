"""The momentum attacks, APGD and AutoAttack, against mathematics and the authors' own code."""

from __future__ import annotations

import logging

import pytest
import torch

import touchstone
from api_tests.attacks.test_attacks import import_peer
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
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
def test_momentum_attacks_succeed_exactly_when_radius_exceeds_distance(name, norm, fields, classes):
    module = linear_model(classes=classes)
    x = gray_images(16)
    distance = exact_distances(module, x, norm)
    for factor in (0.999, 1.03):
        found = touchstone.attack(
            touchstone.wrap(module), x, None, name, norm=norm, eps=(factor * distance).tolist(),
            quantize=False, **fields,
        )  # fmt: skip
        assert found.success.all() if factor > 1 else not found.success.any()


def test_apgd_checkpoints_match_the_paper_for_100_steps():
    assert sorted(apgd.checkpoints(100))[:8] == [22, 41, 57, 70, 80, 87, 93, 99]


def test_dlr_ratio_matches_the_paper():
    logits = torch.tensor([[4.0, 1, 3, 0.5], [1, 4, 3, 0.5]])
    label = torch.tensor([0, 0])
    assert torch.allclose(
        apgd.dlr_loss(Goal.of(label, targeted=False))(logits),
        torch.tensor([-(4 - 3) / (4 - 1), -(1 - 4) / (4 - 1)]),
    )
    spread = 4 - (1 + 0.5) / 2
    assert torch.allclose(
        apgd.dlr_loss(Goal.of(label, targeted=True))(logits),
        torch.tensor([(4 - 3) / spread, (1 - 4) / spread]),
    )


@pytest.mark.parametrize(("classes", "targeted", "margin"), [(2, False, 2), (2, True, -2), (3, True, -2)])
def test_dlr_ratio_equals_the_margin_with_few_classes(classes, targeted, margin):
    logits = torch.tensor([[1.0, 3, 0]])[:, :classes]
    assert apgd.dlr_loss(Goal.of(torch.tensor([0]), targeted=targeted))(logits).tolist() == [margin]


def test_stalled_row_halves_its_step_and_returns_to_its_best_point():
    x0 = torch.full((2, 1, 4, 4), 0.5)
    threat = Threat(x0, torch.tensor([0.1, 0.1]), NORMS["linf"])
    rule = apgd.HalvingStep.start(threat, x0, 100, 0.75)
    x, grad, best = x0, torch.ones_like(x0), x0
    for step in range(23):
        loss = torch.tensor([float(step), 1.0 if step == 3 else 0.0])  # one rises each time, one only once
        best = x if step == 3 else best
        before, (x, rule) = x, rule.advance(threat, x, grad, loss)
    assert torch.allclose(rule.size, torch.tensor([0.2, 0.1]))
    assert torch.equal(rule.before[1], best[1])
    assert torch.equal(rule.before[0], before[0])


def test_restarts_and_eot_multiply_the_gradient_queries():
    model, x = touchstone.wrap(linear_model()), gray_images(3)
    fields = {"eps": 0.005, "steps": 4, "early_stop": False}
    once = touchstone.attack(model, x, None, "apgd", **fields).queries
    often = touchstone.attack(model, x, None, "apgd", restarts=3, eot=5, **fields).queries
    assert once.backward == 3 * 4
    assert often.backward == 3 * 4 * 3 * 5


def test_targeted_apgd_stops_an_image_once_one_target_is_reached():
    module = linear_model(classes=10)
    x = gray_images(4)
    eps = (4 * exact_distances(module, x, "linf")).tolist()
    found = touchstone.attack(touchstone.wrap(module), x, None, "apgdt", eps=eps, steps=50, quantize=False)
    assert found.success.all()
    assert found.queries.backward < 4 * 9 * 10


class BitDepthReduced(torch.nn.Module):
    """A model behind a bit-depth reduction whose gradient is zero nearly everywhere."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module((x * 15).round() / 15)


def test_straight_through_pgd_breaks_a_bit_depth_defense_that_resists_plain_pgd():
    module = linear_model(classes=5)
    x = gray_images(16)
    label = BitDepthReduced(module)(x).argmax(1)
    plain = touchstone.attack(touchstone.wrap(BitDepthReduced(module)), x, label, "pgd", eps=0.05)
    assert plain.success.float().mean() < 0.5
    through = touchstone.attack(touchstone.wrap(module), x, label, "pgd", eps=0.05, defence="bits-4")
    assert through.success.all()
    assert torch.all(BitDepthReduced(module)(through.images).argmax(1) != label)


@pytest.mark.parametrize("defence", ["jpeg-30", "bits-2", "median-3"])
def test_success_agrees_with_the_defended_model(defence):
    model, x = touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:12]
    found = touchstone.attack(model, x, None, "pgd", eps=0.03, steps=5, defence=defence)
    apply_defence = touchstone.engine.apply_defence
    preprocess = model.oracle.preprocessing.apply
    clean = model.oracle.module(preprocess(apply_defence(x, defence))).argmax(1)
    after = model.oracle.module(preprocess(apply_defence(found.images, defence))).argmax(1)
    assert torch.equal(after != clean, found.success)
    assert found.success.any()


def test_autoattack_names_the_part_that_succeeded_and_warns_if_it_was_square():
    class Hidden(torch.nn.Module):
        """Its gradient is that of another function."""

        def forward(self, x):
            z = linear_model()(x)
            return z.round(decimals=2) + 0 * x.flatten(1).sum(1, keepdim=True)

    model = touchstone.wrap(Hidden())
    pixels = (gray_images(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    attack = find("autoattack").parse({"eps": 0.3, "steps": 5, "queries": 500})
    (verdict,), _ = touchstone.evaluation.run_plans(
        [attack_image(attack, pixels, model.oracle, label=None, target=None, seed=0)], model.oracle
    )
    assert verdict.success_float
    assert verdict.found_by in ("apgd-ce", "square")
    assert ("black_box_beats_white_box" in verdict.diagnostics) == (verdict.found_by == "square")


def test_autoattack_runs_each_part_only_on_images_still_robust():
    module = linear_model(classes=10)
    x = gray_images(6)
    distance = exact_distances(module, x, "linf")
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
def test_apgd_fools_about_as_many_images_as_the_authors_code(norm, eps):
    import_peer("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack  # noqa: PLC0415

    model = touchstone.load("fashion-mnist-cnn-linf")
    x, y = touchstone.samples()[:60], torch.arange(60) % 10

    def net(images):
        return model.oracle.module(model.oracle.preprocessing.apply(images))

    theirs = APGDAttack(
        net, norm={"linf": "Linf"}.get(norm, norm.upper()), eps=eps, n_iter=50, seed=0,
        use_largereps=norm == "l1", logger=logging.getLogger("peer"), device="cpu",
    )  # fmt: skip
    broken = (net(theirs.perturb(x, y)).argmax(1) != y).sum()
    ours = touchstone.attack(model, x, y, "apgd", norm=norm, eps=eps, steps=50, quantize=False)
    assert ours.success.sum() >= broken - 1
