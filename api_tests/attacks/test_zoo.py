"""ZOO against exact distances and slopes, and its bookkeeping."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import exact_distances, gray_images, linear_model
from touchstone.attacks.zoo import ZOO, _build_grids, _CoordinateAdam, _draw_values, _importance
from touchstone.engine import NORMS, Case, Goal, Noise, Threat
from touchstone.evaluation import run_plans


def test_zoo_finds_nearly_the_exact_distance():
    module = linear_model(classes=5)
    x = gray_images(8)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "zoo", queries=15_000, learning_rate=0.002,
        quantize=False,
    )  # fmt: skip
    exact = exact_distances(module, x, "l2")
    assert found.success.all()
    assert torch.all(found.distance >= exact * (1 - 1e-4))
    assert float((found.distance / exact).median()) < 1.15


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 35, 36, 300, 4_000])
def test_zoo_uses_exactly_its_query_budget(queries):
    x = gray_images(2)
    found = touchstone.attack(
        touchstone.wrap(linear_model()), x, None, "zoo", queries=queries, quantize=False
    )
    assert found.queries.forward == 2 * (queries + 2)


def build_case(x):
    label = linear_model()(x).argmax(1)
    threat = Threat(x, torch.full((len(x),), torch.inf), NORMS["l2"])
    return Case(
        threat, Goal.of(label, targeted=False), Noise.from_seeds([(0, i) for i in range(len(x))], "t")
    )


def start_adam(x, coarser=0):
    """Adam's state in the image's own pixels, or in those of coarser ones."""
    return _CoordinateAdam.start(_build_grids(x)[coarser], x, 1.0, 0.01)


def test_estimated_slopes_match_the_margin_gradient():
    module = linear_model()
    x = gray_images(3)
    case = build_case(x)
    chosen = torch.tensor([[0, 5, 191], [7, 1, 2], [100, 50, 3]])
    plan = ZOO()._estimate_slopes(case, start_adam(x), chosen)
    ((scored, slope),), _ = run_plans([plan], touchstone.wrap(module).oracle)
    side = torch.where(case.goal.label == 0, 1.0, -1.0)
    weight = (module[1].weight[1] - module[1].weight[0]).detach()
    assert torch.allclose(slope, side[:, None] * weight[chosen], rtol=0.02, atol=0.02)
    logits = module(x).detach()
    assert torch.allclose(scored.score, -(logits[:, 0] - logits[:, 1]).abs())


def test_adam_steps_match_torch():
    x = torch.full((1, 1, 2, 2), 0.5)
    ours = start_adam(x)
    theirs = x.flatten(1).clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.01)
    for step in range(5):
        slope = torch.tensor([[1.0, -2, 0.1, 3 - step]])
        ours = ours.step(torch.tensor([[0, 1, 2, 3]]), slope)
        theirs.grad = slope
        optimizer.step()
    assert torch.allclose(ours.x.flatten(1), theirs.detach(), atol=1e-6)


def test_coordinates_are_drawn_once_and_preferably_where_much_changed():
    x = gray_images(1, shape=(1, 16, 16))
    case = build_case_of_shape(x)
    pixels = _build_grids(x)[0]
    even = torch.stack([_draw_values(case, _importance(case, x, pixels), 32)[0] for _ in range(60)])
    assert all(len(row.unique()) == 32 for row in even)
    assert len(even.unique()) == 256
    moved = x.clone()
    moved[0, 0, 3, 4] += 0.1
    often = torch.cat([_draw_values(case, _importance(case, moved, pixels), 4)[0] for _ in range(50)])
    corner = ((often // 16 // 2 == 1) & (often % 16 // 2 == 2)).float().mean()
    assert float(corner) > 0.5


def build_case_of_shape(x):
    threat = Threat(x, torch.full((len(x),), torch.inf), NORMS["l2"])
    goal = Goal.of(torch.zeros(len(x), dtype=torch.long), targeted=False)
    return Case(threat, goal, Noise.from_seeds([(0, i) for i in range(len(x))], "t"))


def test_coarse_grid_keeps_constants_and_gathers_by_the_transpose():
    x = gray_images(2, shape=(3, 20, 33))
    grids = _build_grids(x)
    assert [grid.shape(x) for grid in grids] == [(3, 20, 33), (3, 10, 17), (3, 5, 9)]
    for grid in grids:
        y, d = (torch.randn(2, *shape) for shape in (grid.shape(x), x.shape[1:]))
        assert torch.allclose(grid.enlarge(torch.ones_like(y)), torch.ones_like(d))
        assert torch.allclose((grid.enlarge(y) * d).sum(), (y * grid.gather(d)).sum(), atol=1e-3)


def test_coarse_grid_steps_are_smooth_and_stay_in_the_box():
    x = torch.full((1, 1, 16, 16), 0.995)
    state = start_adam(x, coarser=1).step(torch.tensor([[9, 10]]), torch.tensor([[-1.0, -1]]))
    moved = (state.x - x)[0, 0]
    assert float(moved.max()) == pytest.approx(0.005, rel=1e-3)
    assert 8 <= int((moved > 0).sum()) <= 40


def test_zoo_fools_most_images_with_1000_queries():
    found = touchstone.attack(
        touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:8], torch.arange(8), "zoo", queries=1_000,
        quantize=False,
    )  # fmt: skip
    assert float(found.success.float().mean()) >= 0.8
