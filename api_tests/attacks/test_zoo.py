"""ZOO against exact distances and slopes, and its bookkeeping."""

from __future__ import annotations

import pytest
import torch

import touchstone
from api_tests.support.linear_models import distances, greyish, linear_model
from touchstone.attacks.zoo import ZOO, _Adam, _drawn, _grids, _importance
from touchstone.engine import NORMS, Case, Goal, Noise, Threat
from touchstone.evaluation import run_here


def test_zoo_comes_near_the_exact_distance():
    module = linear_model(classes=5)
    x = greyish(8)
    found = touchstone.attack(
        touchstone.wrap(module), x, None, "zoo", queries=15_000, learning_rate=0.002,
        quantize=False,
    )  # fmt: skip
    exact = distances(module, x, "l2")
    assert found.success.all()
    assert torch.all(found.distance >= exact * (1 - 1e-4))
    assert float((found.distance / exact).median()) < 1.15


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 35, 36, 300, 4_000])
def test_it_asks_exactly_so_often(queries):
    x = greyish(2)
    found = touchstone.attack(
        touchstone.wrap(linear_model()), x, None, "zoo", queries=queries, quantize=False
    )
    assert found.queries.forward == 2 * (queries + 1)


def case_of(x):
    label = linear_model()(x).argmax(1)
    threat = Threat(x, torch.full((len(x),), torch.inf), NORMS["l2"])
    return Case(threat, Goal.of(label, targeted=False), Noise.of([(0, i) for i in range(len(x))], "t"))


def started(x, coarser=0):
    """Adam's state in the image's own pixels, or in those of coarser ones."""
    return _Adam.start(_grids(x)[coarser], x, 1.0, 0.01)


def test_slopes_are_those_of_the_margin():
    module = linear_model()
    x = greyish(3)
    case = case_of(x)
    chosen = torch.tensor([[0, 5, 191], [7, 1, 2], [100, 50, 3]])
    plan = ZOO()._slopes(case, started(x), chosen)
    ((seen, slope),), _ = run_here([plan], touchstone.wrap(module).oracle)
    side = torch.where(case.goal.label == 0, 1.0, -1.0)
    weight = (module[1].weight[1] - module[1].weight[0]).detach()
    assert torch.allclose(slope, side[:, None] * weight[chosen], rtol=0.02, atol=0.02)
    logits = module(x).detach()
    assert torch.allclose(seen.score, -(logits[:, 0] - logits[:, 1]).abs())


def test_adam_is_torchs():
    x = torch.full((1, 1, 2, 2), 0.5)
    ours = started(x)
    theirs = x.flatten(1).clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.01)
    for step in range(5):
        slope = torch.tensor([[1.0, -2, 0.1, 3 - step]])
        ours = ours.moved(torch.tensor([[0, 1, 2, 3]]), slope)
        theirs.grad = slope
        optimizer.step()
    assert torch.allclose(ours.x.flatten(1), theirs.detach(), atol=1e-6)


def test_values_are_drawn_once_and_where_much_changed():
    x = greyish(1, shape=(1, 16, 16))
    case = case_of_shape(x)
    pixels = _grids(x)[0]
    even = torch.stack([_drawn(case, _importance(case, x, pixels), 32)[0] for _ in range(60)])
    assert all(len(row.unique()) == 32 for row in even)
    assert len(even.unique()) == 256
    moved = x.clone()
    moved[0, 0, 3, 4] += 0.1
    often = torch.cat([_drawn(case, _importance(case, moved, pixels), 4)[0] for _ in range(50)])
    corner = ((often // 16 // 2 == 1) & (often % 16 // 2 == 2)).float().mean()
    assert float(corner) > 0.5


def case_of_shape(x):
    threat = Threat(x, torch.full((len(x),), torch.inf), NORMS["l2"])
    goal = Goal.of(torch.zeros(len(x), dtype=torch.long), targeted=False)
    return Case(threat, goal, Noise.of([(0, i) for i in range(len(x))], "t"))


def test_a_coarser_space_is_enlarged_smoothly_and_its_slopes_are_those_in_pixels():
    x = greyish(2, shape=(3, 20, 33))
    grids = _grids(x)
    assert [grid.shape(x) for grid in grids] == [(3, 20, 33), (3, 10, 17), (3, 5, 9)]
    for grid in grids:
        y, d = (torch.randn(2, *shape) for shape in (grid.shape(x), x.shape[1:]))
        assert torch.allclose(grid.spread(torch.ones_like(y)), torch.ones_like(d))
        assert torch.allclose((grid.spread(y) * d).sum(), (y * grid.gathered(d)).sum(), atol=1e-3)


def test_steps_in_a_coarser_space_keep_to_the_box_and_are_smooth():
    x = torch.full((1, 1, 16, 16), 0.995)
    state = started(x, coarser=1).moved(torch.tensor([[9, 10]]), torch.tensor([[-1.0, -1]]))
    moved = (state.x - x)[0, 0]
    assert float(moved.max()) == pytest.approx(0.005, rel=1e-3)
    assert 8 <= int((moved > 0).sum()) <= 40


def test_a_thousand_queries_fool_most_images():
    found = touchstone.attack(
        touchstone.load("fashion-mnist-cnn"), touchstone.samples()[:8], torch.arange(8), "zoo", queries=1_000,
        quantize=False,
    )  # fmt: skip
    assert float(found.success.float().mean()) >= 0.8
