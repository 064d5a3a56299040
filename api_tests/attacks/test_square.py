"""Square against exact distances, against its own rules, and against the authors' code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.attacks.square import (
    DRAWS,
    HALVED_AFTER,
    OVERSHOOT_SHARE,
    Square,
    _pyramids,
    _random_signs,
    _tiles,
    _window,
)
from touchstone.engine import NORMS, Case, Goal, Noise, Threat
from touchstone.evaluation import logits_of, run_plans


def build_case(count=4, norm="linf", eps=0.05, shape=(3, 10, 10)):
    """A case of `count` gray images."""
    x = gray_images(count, shape=shape)
    threat = Threat(x, torch.full((count,), eps), NORMS[norm])
    goal = Goal.of(torch.zeros(count, dtype=torch.long), targeted=False)
    return Case(threat, goal, Noise.from_seeds([(0, i) for i in range(count)], "square"), quantize=False)


@pytest.mark.parametrize(("norm", "enough"), [("linf", 1.3), ("l2", 2.5), ("l1", 12)])
def test_square_succeeds_above_the_exact_distance_and_never_below(norm, enough):
    module = linear_model()
    x = gray_images(10)
    distance = exact_distances(module, x, norm)
    model = touchstone.wrap(module)
    for factor in (0.99, enough):
        found = touchstone.attack(
            model, x, None, "square", norm=norm, eps=(factor * distance).tolist(),
            queries=500 if factor > 1 else 100, quantize=False,
        )  # fmt: skip
        assert found.success.all() if factor > 1 else not found.success.any()
        assert torch.all(found.distance <= factor * distance * (1 + 1e-6) + 1e-6)
    assert found.queries.forward < 10 * 500


@pytest.mark.parametrize("norm", Square.info.norms)
@pytest.mark.parametrize("quantize", [True, False])
def test_square_uses_exactly_its_query_budget_on_robust_images(norm, quantize):
    eps = {"linf": 1.5 / 255, "l2": 0.02, "l1": 0.05}[norm]
    x = gray_images(12)
    x = x[exact_distances(linear_model(), x, norm) > eps]
    far = {"eps": eps, "norm": norm, "queries": 130, "quantize": quantize}
    found = touchstone.attack(touchstone.wrap(linear_model()), x, None, "square", **far)
    assert not found.success.any()
    assert found.queries.forward == len(x) * (130 + 2)  # the look before, and the verdict


def logit_gap(images):
    """How far the two logits are from each other."""
    with torch.no_grad():
        logits = linear_model()(images)
    return (logits[:, 0] - logits[:, 1]).abs()


def test_failed_attack_returns_the_best_image_queried():
    module = linear_model()
    x = gray_images(6)
    eps = (0.9 * exact_distances(module, x, "linf")).tolist()
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "square", eps=eps, queries=600, quantize=False
    )
    assert not found.success.any()
    assert torch.all(logit_gap(found.images) < 0.6 * logit_gap(x))


def test_success_is_improved_further_without_early_stop():
    model = touchstone.wrap(linear_model())
    x, wide = gray_images(4), {"eps": 0.05, "queries": 200, "quantize": False}
    first = touchstone.attack(model, x, None, "square", **wide)
    further = touchstone.attack(model, x, None, "square", early_stop=False, **wide)

    assert first.success.all()
    assert further.success.all()
    assert torch.all(logit_gap(further.images) > 2 * logit_gap(first.images))
    assert further.queries.forward == 4 * 202


def test_linf_proposal_recolors_exactly_one_square():
    case = build_case(64, shape=(1, 10, 10))
    attack = Square(queries=1_000)
    x = case.threat.project(case.threat.x0 + 1)  # every value at its upper end
    for step in (0, 60, 900):
        tried = attack._recolor_squares(
            case.threat, x, [step] * 64, case.noise.uniform(torch.empty(64, DRAWS))
        )
        changed = (tried != x).any(1)
        side = {0: 9, 60: 2, 900: 1}[step]
        assert torch.equal(changed.flatten(1).sum(1), torch.full((64,), side * side))
        spans = [
            (torch.where(one.any(1))[0].tolist(), torch.where(one.any(0))[0].tolist()) for one in changed
        ]
        assert all(len(rows) == len(columns) == side for rows, columns in spans)
        assert all(max(rows) - min(rows) == side - 1 for rows, _ in spans)
        assert len(set(map(str, spans))) > 3 or side == 9
    corners = {str(span) for span in spans}
    assert len(corners) > 30


def test_random_windows_cover_every_pixel():
    x = torch.empty(2_000, 1, 5, 7)
    numbers = torch.rand(2_000, 2, generator=torch.Generator().manual_seed(0))
    assert _window(x, 1, numbers[:, 0], numbers[:, 1]).unique().tolist() == list(range(35))
    top = torch.full((2_000,), 1 - 2**-24)
    assert int(_window(x, 5, top, top).max()) == 34


def test_random_signs_are_uniform_and_independent():
    numbers = torch.rand(4_000, generator=torch.Generator().manual_seed(0))
    kinds, counts = _random_signs(numbers, 3).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert torch.all((counts - 500).abs() < 100)


def test_square_size_schedule_matches_the_paper_at_10000_queries():
    attack = Square(queries=10_000)
    x = torch.empty(1, 3, 100, 100)
    share = [attack._side(x, step) ** 2 / 10_000 for step in (0, 10, 11, 50, 51, 201, 501, 1001, 8001, 9999)]
    expected = [0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.05, 0.025, 0.8 / 512, 0.8 / 512]
    assert share == pytest.approx(expected)
    assert Square(queries=1_000)._side(x, 5) == attack._side(x, 50)
    assert len(HALVED_AFTER) == 9


@pytest.mark.parametrize("side", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("p", [1, 2])
def test_pyramids_have_unit_norm_and_two_opposite_halves(side, p):
    turned = torch.tensor([0.1, 0.9])
    lying, standing = _pyramids(side, turned, p).expand(2, side, side)
    assert float(lying.norm(p)) == pytest.approx(1)
    if side > 1:
        assert torch.equal(lying.T, standing)
        assert torch.all(lying[: side // 2] > 0)
        assert torch.all(lying[side // 2 :] < 0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_perturbation_stays_on_the_sphere_where_the_box_does_not_bind(norm):
    case = build_case(norm=norm, eps=0.3)
    x = _tiles(case)
    for step in range(20):
        numbers = case.noise.uniform(torch.empty(4, DRAWS))
        assert case.threat.distance(x).tolist() == pytest.approx([0.3] * 4, rel=1e-4)
        x = Square(queries=40)._reshape_squares(case.threat, x, [step] * len(x), numbers)


def test_l1_budget_cut_off_by_the_box_is_spent_elsewhere():
    case = build_case(64, norm="l1", eps=2.0, shape=(1, 10, 10))
    black = replace(case.threat, x0=torch.zeros(64, 1, 10, 10))
    x = _tiles(replace(case, threat=black))
    assert x.flatten(1).sum(1).tolist() == pytest.approx([2.0] * 64, rel=1e-4)
    numbers = case.noise.uniform(torch.empty(64, DRAWS))
    tried = Square(queries=40)._reshape_squares(black, x, [20] * len(x), numbers)
    assert tried.min() >= 0
    assert torch.all(tried.flatten(1).sum(1) <= 2.0 + 1e-5)


def test_some_l1_proposals_change_much_more_of_the_image():
    case = build_case(64, norm="l1", eps=2.0, shape=(1, 20, 20))
    x, numbers = _tiles(case), case.noise.uniform(torch.empty(64, DRAWS))
    tried = Square(queries=40)._reshape_squares(case.threat, x, [30] * len(x), numbers)
    changed = (tried != x).flatten(1).double().mean(1)
    some = numbers[:, 6] < OVERSHOOT_SHARE
    assert 5 < int(some.sum()) < 30
    assert changed[some].median() > 2 * changed[~some].median()


@pytest.mark.parametrize("norm", Square.info.norms)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 4, 9), (4, 11, 6)])
def test_square_attacks_images_of_any_size(norm, shape):
    module = linear_model(shape=shape)
    x = gray_images(3, shape=shape)
    found = touchstone.attack(touchstone.wrap(module), x, None, "square", norm=norm, eps=0.5, queries=200)
    assert torch.equal(module(found.images).argmax(1) != module(x).argmax(1), found.success)
    assert found.images.isfinite().all()


def test_linf_images_use_every_whole_level_of_the_radius():
    module = linear_model()
    x = gray_images(4)
    found = touchstone.attack(touchstone.wrap(module), x, None, "square", eps=2.5 / 255, queries=3)
    assert torch.equal(((found.images - x) * 255).round().abs().unique(), torch.tensor([2.0]))


@pytest.mark.peer
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 10.0)])
def test_square_fools_about_as_many_images_as_the_authors_torch_code(norm, eps):
    pyautoattack = pytest.importorskip("pyautoattack.square")
    model = touchstone.load("fashion-mnist-cnn-linf")
    x, y = touchstone.samples()[:50], torch.arange(50) % 10

    def logits(images):
        return run_plans([logits_of(images, as_files=False)], model.oracle)[0][0].clone()

    theirs = pyautoattack.SquareAttack(logits, norm=norm.capitalize(), n_queries=150, eps=eps, device="cpu")
    resisting = (logits(theirs.perturb(x, y)).argmax(1) == y).float().mean()
    ours = touchstone.attack(model, x, y, "square", norm=norm, eps=eps, queries=150, quantize=False)
    assert float((~ours.success).float().mean()) <= float(resisting) + 0.06
