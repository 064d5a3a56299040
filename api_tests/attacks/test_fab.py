"""FAB: projections against scipy's solvers, distances against a linear model's and the authors' code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.attacks.fab import FAB, project_to_hyperplane
from touchstone.engine import NORMS, Case, Goal, Noise, Threat
from touchstone.evaluation import run_plans

INFINITE = float("inf")
ORDER = {"linf": INFINITE, "l2": 2, "l1": 1}


def random_hyperplane(seed, n=6):
    """A point of the box, some of its values at the bounds, and a hyperplane that the box meets."""
    draw = np.random.default_rng(seed)
    x = np.clip(draw.uniform(-0.2, 1.2, n), 0, 1)
    normal = draw.normal(size=n) * draw.choice([0.01, 1, 30])
    inside = draw.uniform(size=n)
    return x, normal, float(normal @ (x - inside))


def project_row(norm, x, normal, gap):
    rows = [torch.tensor(v, dtype=torch.float32).view(1, 1, 1, -1) for v in (x, normal)]
    return (
        project_to_hyperplane(norm, *rows, torch.tensor([gap], dtype=torch.float32))
        .flatten()
        .double()
        .numpy()
    )


def shortest_linf(x, normal, gap):
    n = len(x)
    bounded = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    equal = np.append(normal, 0)[None]
    cost = np.append(np.zeros(n), 1)
    return linprog(cost, bounded, np.zeros(2 * n), equal, [-gap], bounds).fun


def shortest_l1(x, normal, gap):
    n = len(x)
    bounds = [*((0, 1 - one) for one in x), *((0, one) for one in x)]
    return linprog(np.ones(2 * n), None, None, np.append(normal, -normal)[None], [-gap], bounds).fun


def shortest_l2(x, normal, gap):
    scale = np.abs(normal).max()
    on = LinearConstraint(normal / scale, -gap / scale, -gap / scale)
    found = minimize(
        lambda d: d @ d, np.zeros(len(x)), jac=lambda d: 2 * d, method="SLSQP", constraints=on,
        bounds=list(zip(-x, 1 - x, strict=True)), options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    return found.fun**0.5


SHORTEST = {"linf": shortest_linf, "l2": shortest_l2, "l1": shortest_l1}


@pytest.mark.parametrize("norm", SHORTEST)
def test_projection_is_as_short_as_a_solver_finds(norm):
    for seed in range(60):
        x, normal, gap = random_hyperplane(seed)
        d = project_row(norm, x, normal, gap)
        assert np.all((x + d >= -1e-6) & (x + d <= 1 + 1e-6))
        assert gap + normal @ d == pytest.approx(0, abs=1e-5 * np.abs(normal).max())
        assert np.linalg.norm(d, ORDER[norm]) == pytest.approx(SHORTEST[norm](x, normal, gap), abs=2e-5)


@pytest.mark.parametrize("norm", SHORTEST)
def test_projection_goes_to_the_nearest_corner_when_hyperplane_misses_the_box(norm):
    x, normal, _ = random_hyperplane(1)
    d = project_row(norm, x, normal, 1000.0)
    assert np.allclose(x + d, (normal < 0).astype(float), atol=1e-6)


@pytest.mark.parametrize("norm", SHORTEST)
def test_projection_is_zero_for_a_zero_normal(norm):
    x = np.array([0.0, 0.3, 1.0])
    for gap in (-1.0, 0.0, 1e8):
        assert not project_row(norm, x, np.zeros(3), gap).any()


@pytest.mark.parametrize("rivals", [None, 0, 9])
@pytest.mark.parametrize("norm", SHORTEST)
def test_fab_distances_are_exact_on_a_linear_model(norm, rivals):
    module = linear_model(classes=10)
    x = gray_images(16)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "fab", norm=norm, rivals=rivals, steps=30, quantize=False
    )
    ratio = found.distance / exact_distances(module, x, norm)
    assert found.success.all()
    assert float(ratio.min()) > 0.999
    assert float(ratio.median()) < 1.002
    assert float(ratio.max()) < 1.02


def test_fab_gradient_count_follows_rivals_and_is_capped_for_many_classes():
    x = gray_images(2)
    for classes, rivals, backward in (
        (10, None, 9 * 10),
        (10, 4, 4 * 10),
        (12, None, 9 * 10),
        (12, 0, 9 * 10),
    ):
        model = touchstone.wrap(linear_model(classes=classes))
        found = touchstone.attack(model, x, None, "fab", steps=10, rivals=rivals, quantize=False)
        assert found.queries.backward == 2 * backward


def test_fab_restarts_never_increase_the_distance_and_depend_on_the_seed():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
    )
    torch.nn.init.normal_(net[1].weight)
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    runs = [
        touchstone.attack(
            touchstone.wrap(net), x, None, "fab", steps=2, restarts=restarts, seed=seed, quantize=False
        )
        for restarts, seed in ((1, 0), (5, 0), (5, 0), (5, 1))
    ]
    assert torch.all(runs[1].distance <= runs[0].distance)
    assert torch.equal(runs[1].images, runs[2].images)
    assert not torch.equal(runs[1].images, runs[3].images)


def test_fab_fails_and_keeps_the_image_on_a_constant_model():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0, 0.0]]) + 0 * x.flatten(1).sum(1, keepdim=True)

    x = gray_images(2)
    for rivals in (0, 2):
        for norm in SHORTEST:
            found = touchstone.attack(
                touchstone.wrap(Constant()), x, None, "fab", norm=norm, steps=4, rivals=rivals, quantize=False
            )
            assert not found.success.any()
            assert torch.allclose(found.images, x, atol=1e-6)


@pytest.mark.parametrize("norm", SHORTEST)
def test_fab_counts_only_successes_inside_a_radius_and_drops_finished_rows(norm):
    module = linear_model(classes=10)
    x = gray_images(8)
    exact = exact_distances(module, x, norm)
    factor = torch.tensor([0.9, 1.1]).repeat(4)
    threat = Threat(x, (exact * factor).float(), NORMS[norm])
    goal = Goal.of(module(x).argmax(1), targeted=False)
    case = Case(threat, goal, Noise.from_seeds([(0, row) for row in range(8)], "fab"), quantize=False)
    attack = FAB(norm=norm, steps=10, rivals=9)
    (found,), queries = run_plans([attack.run(case)], touchstone.wrap(module).oracle)
    assert torch.equal(found.met, factor > 1)
    assert torch.all(threat.distance(found.x) <= threat.eps + 1e-6)
    assert queries.backward <= 4 * 9 * 10 + 4 * 9 * 2, "an image leaves in the midst of its attempts"


@pytest.mark.peer
@pytest.mark.parametrize("norm", SHORTEST)
def test_fab_distances_are_no_larger_than_the_authors_code(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        authors = pytest.importorskip("pyautoattack.fab_pt")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 676, 5)
    )
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = touchstone.samples()[:16]
    y = module(x).argmax(1)
    theirs = authors.FABAttack_PT(
        module, norm=norm.capitalize(), n_restarts=1, n_iter=20, eps=1e9, device="cpu"
    ).perturb(x, y)
    size = NORMS[norm].size(theirs - x)
    fooled = module(theirs).argmax(1) != y
    ours = touchstone.attack(
        touchstone.wrap(module), x, y, "fab", norm=norm, steps=20, rivals=0, quantize=False
    )
    assert torch.all(ours.success | ~fooled)
    assert float((ours.distance[fooled] / size[fooled]).median()) <= 1.02
