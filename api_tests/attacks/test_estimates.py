"""NES and SimBA against exact gradients, exact distances and their own bookkeeping."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.attacks.nes import NES
from touchstone.attacks.simba import SimBA, _basis_vectors
from touchstone.engine import NORMS, Case, Goal, Noise, Threat, goal_progress
from touchstone.evaluation import run_plans


def build_case(x, label, norm="l2", *, targeted=False):
    rows = range(len(x))
    threat = Threat(x, torch.full((len(x),), 0.5), NORMS[norm])
    return Case(
        threat,
        Goal.of(label, targeted=targeted),
        Noise.from_seeds([(0, i) for i in rows], "t"),
        quantize=False,
    )


def test_goal_progress_is_positive_exactly_when_the_goal_is_met():
    logits = torch.tensor([[3.0, 1, 0], [1, 3, 0], [2, 2, 0], [90, 0, 0]])
    label = torch.zeros(4, dtype=torch.long)
    left = goal_progress(Goal.of(label, targeted=False), logits)
    assert (left > 0).tolist() == [False, True, False, False]
    assert left[[0, 1, 3]].tolist() == [-2, 2, -90]
    reached = goal_progress(Goal.of(label, targeted=True), logits)
    assert (reached > 0).tolist() == [True, False, True, True]
    assert float(reached[1]) == pytest.approx(float(logits[1].log_softmax(0)[0]))


@pytest.mark.parametrize("targeted", [False, True])
def test_nes_estimate_approximates_the_exact_gradient(targeted):
    module = linear_model()
    x = gray_images(3)
    label = module(x).argmax(1)
    case = build_case(x, 1 - label if targeted else label, targeted=targeted)
    (grad,), queries = run_plans([NES()._estimate_gradient(case, x, 20_000)], touchstone.wrap(module).oracle)
    weight = (module[1].weight[1] - module[1].weight[0]).detach().view(3, 8, 8)
    for one, y in zip(grad, label.tolist(), strict=True):
        exact = weight if y == 0 else -weight
        assert float(torch.cosine_similarity(one.flatten(), exact.flatten(), 0)) > 0.98
        if not targeted:
            assert float((one - exact).norm() / exact.norm()) < 0.15
    assert queries.forward == 3 * 40_000


@pytest.mark.parametrize(("norm", "enough"), [("linf", 1.6), ("l2", 1.6)])
def test_nes_succeeds_above_the_exact_distance_and_never_below(norm, enough):
    module = linear_model()
    x = gray_images(8)
    distance = exact_distances(module, x, norm)
    for factor in (0.99, enough):
        found = touchstone.attack(
            touchstone.wrap(module), x, None, "nes", norm=norm, eps=(factor * distance).tolist(),
            queries=2_000 if factor > 1 else 300, quantize=False,
        )  # fmt: skip
        assert found.success.all() if factor > 1 else not found.success.any()


@pytest.mark.parametrize("queries", [1, 2, 3, 51, 52, 53, 54, 102, 200])
@pytest.mark.parametrize("quantize", [False, True])
def test_nes_uses_exactly_its_query_budget(queries, quantize):
    x = gray_images(12)
    x = x[exact_distances(linear_model(), x, "linf") > 1 / 255]
    found = touchstone.attack(
        touchstone.wrap(linear_model()), x, None, "nes", eps=1 / 255, queries=queries, quantize=quantize
    )
    assert not found.success.any()
    assert found.queries.forward == len(x) * (queries + 2)


def logit_gap(images):
    with torch.no_grad():
        logits = linear_model()(images)
    return (logits[:, 0] - logits[:, 1]).abs()


@pytest.mark.parametrize("method", ["nes", "simba"])
def test_failed_attack_returns_an_image_closer_to_the_boundary(method):
    x = gray_images(12)
    x = x[exact_distances(linear_model(), x, "l2") > 0.03]
    small = {"eps": 0.0005} if method == "nes" else {"step_size": 0.001}
    found = touchstone.attack(
        touchstone.wrap(linear_model()), x, None, method, queries=120, quantize=False, **small
    )
    assert not found.success.any()
    assert torch.all(logit_gap(found.images) < logit_gap(x))


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_directions_are_an_orthonormal_basis(basis):
    for side in (1, 2, 7):
        waves = _basis_vectors(basis, side, torch.device("cpu"), torch.float64)
        assert torch.allclose(waves @ waves.T, torch.eye(side, dtype=torch.float64))


def test_simba_visits_low_frequencies_first_and_every_direction_once():
    case = build_case(gray_images(5, shape=(3, 16, 16)), torch.zeros(5, dtype=torch.long))
    order = SimBA(basis="dct", low=1 / 4)._direction_order(case)
    place = order[:, : 3 * 16] % 256
    assert int((place // 16).max()) == 3
    assert int((place % 16).max()) == 3
    assert torch.equal(order.sort(1).values, torch.arange(768).expand(5, -1))
    assert not torch.equal(order[0], order[1])


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9)])
def test_simba_tries_both_signs_and_its_steps_are_orthogonal(basis, shape):
    module = linear_model(shape=shape)
    x = gray_images(8, shape=shape)
    size = 0.05
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "simba", basis=basis, step_size=size, queries=400, quantize=False
    )
    d = found.images - x
    steps = d.flatten(1).square().sum(1) / size**2
    assert found.success.all()
    assert torch.allclose(steps, steps.round(), atol=1e-3), "every step kept adds its own square"
    assert found.queries.forward <= 8 + (1 + 2 * steps).sum() + 1
    assert bool((d > 1e-4).any())
    assert bool((d < -1e-4).any())


def test_simba_uses_exactly_its_query_budget_on_a_constant_model():
    class Deaf(torch.nn.Module):
        """Answers the same to everything."""

        def forward(self, x):
            return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]

    for quantize in (False, True):
        x = gray_images(2, shape=(1, 4, 4))
        found = touchstone.attack(touchstone.wrap(Deaf()), x, None, "simba", queries=77, quantize=quantize)
        assert found.queries.forward == 2 * (77 + 2)
        assert torch.equal(found.images, x)
