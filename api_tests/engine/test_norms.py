from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from touchstone.engine import NORMS, Noise

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf"), "l0": float("inf")}


@pytest.fixture(params=sorted(NORMS))
def norm(request):
    return NORMS[request.param]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_size_is_the_vector_norm(norm):
    d = draw(4, 3, 5, 5)
    expected = torch.linalg.vector_norm(d.flatten(1), ord=ORDER[norm.name], dim=1)
    assert torch.allclose(norm.size(d), expected, rtol=1e-6)


def test_steepest_direction_has_unit_size_and_the_dual_norm_as_slope(norm):
    g = draw(4, 3, 20, 20)
    direction = norm.steepest(g, torch.full_like(g, 0.5))
    assert torch.allclose(norm.size(direction), torch.ones(4), rtol=1e-5)
    slope = (direction * g).flatten(1).sum(1)
    best = torch.linalg.vector_norm(g.flatten(1), ord=DUAL[norm.name], dim=1)
    # The sparse L1 step spreads over the top percent: it reaches most of the steepest slope.
    assert torch.all(slope >= (0.7 if norm.name == "l1" else 0.9999) * best)
    assert torch.all(slope <= 1.0001 * best)


def test_steepest_direction_of_a_tiny_gradient_is_unit_and_of_zero_is_zero(norm):
    g = torch.stack([draw(3, 8, 8) * 1e-25, torch.zeros(3, 8, 8)])
    direction = norm.steepest(g, torch.full_like(g, 0.5))
    assert norm.size(direction)[0] == pytest.approx(1, rel=1e-5)
    assert norm.size(direction)[1] == 0


def test_projection_lands_in_ball_and_box_and_keeps_inner_points(norm):
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    d = draw(6, 3, 8, 8)
    eps = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 1e4])
    p = norm.project(d, eps, -x, 1 - x)
    assert torch.all(norm.size(p) <= eps * (1 + 1e-5))
    assert torch.all((x + p >= -1e-6) & (x + p <= 1 + 1e-6))
    assert torch.allclose(norm.project(p, eps * (1 + 1e-5), -x, 1 - x), p, atol=1e-7)


def test_l1_projection_matches_a_general_solver():
    rng = np.random.default_rng(0)
    eps = 0.8
    for _ in range(5):
        x, d = rng.random(6), rng.normal(size=6)
        ours = NORMS["l1"].project(
            torch.tensor(d).view(1, 1, 1, 6), torch.tensor([eps]), -torch.tensor(x), 1 - torch.tensor(x)
        )
        # |u| = p + n with p, n >= 0 turns the ball into a linear constraint.
        solved = minimize(
            lambda pn, d=d: ((pn[:6] - pn[6:] - d) ** 2).sum(),
            np.zeros(12),
            bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
            constraints={"type": "ineq", "fun": lambda pn: eps - pn.sum()},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert np.allclose(ours.numpy().ravel(), solved.x[:6] - solved.x[6:], atol=1e-5)


@pytest.mark.parametrize("norm", [NORMS[name] for name in ("linf", "l2", "l1")], ids=("linf", "l2", "l1"))
def test_random_samples_fill_the_ball_uniformly(norm):
    like = torch.zeros(4000, 1, 1, 2)
    noise = Noise.from_seeds([(0, row) for row in range(4000)], "test")
    d = norm.sample(like, torch.full((4000,), 0.5), noise)
    size = norm.size(d)
    assert torch.all(size <= 0.5 * (1 + 1e-6))
    # In two dimensions the share of a uniform ball within radius r is r².
    assert float((size <= 0.25).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((d[:, 0, 0, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_l0_projection_keeps_the_largest_changes_and_samples_have_full_size():
    d = torch.tensor([[[[0.5, -0.9, 0.1, 0.2]]]])
    kept = NORMS["l0"].project(d, torch.tensor([2.0]), torch.full_like(d, -1), torch.full_like(d, 1))
    assert torch.equal(kept, torch.tensor([[[[0.5, -0.9, 0, 0]]]]))
    drawn = NORMS["l0"].sample(
        torch.zeros(50, 3, 8, 8), torch.full((50,), 7.0), Noise.from_seeds([(0, i) for i in range(50)], "t")
    )
    assert torch.equal(NORMS["l0"].size(drawn), torch.full((50,), 7.0))


def test_noise_of_a_row_depends_only_on_its_key():
    like = torch.zeros(3, 2, 2)
    together = Noise.from_seeds([(7, 0), (7, 1), (8, 0)], "pgd")
    alone = Noise.from_seeds([(7, 1)], "pgd")
    assert torch.equal(together.uniform(like)[1:2], alone.uniform(like[:1]))
    assert not torch.equal(
        Noise.from_seeds([(7, 1)], "fgsm").uniform(like[:1]),
        Noise.from_seeds([(7, 1)], "pgd").uniform(like[:1]),
    )
    picked = together[torch.tensor([False, True, False])]
    assert torch.equal(picked.normal(like[:1]), alone.normal(like[:1]))
