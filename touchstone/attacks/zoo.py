"""ZOO: Carlini and Wagner's attack with differences of scores in place of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Queries, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Best, Case, Plan, PlanOf

REGIONS = 8
"""Importance is computed for the regions of a grid with so many along each side."""
REFRESH_QUERIES = 2_000
"""Queries after which importance is computed anew."""
MIN_SIDE = 4
"""The attack space has at least so many values along each side."""
SWEEPS = 8
"""The search moves to a finer attack space after as many queries as so many passes over its slopes take."""
MIN_TURN_STEPS = 3
"""The least steps in which every value is moved."""
DECAY, DECAY2, TINY = 0.9, 0.999, 1e-8
ADAPT_FACTOR = 1.2
"""Factor by which c changes at each step, and the learning rate until the goal is met first."""


class ZOO(MinimalNorm):
    """Zeroth order optimization (algorithms 1 and 2): estimate the slope of Carlini and Wagner's loss in a
    few values of the image at a time, by queries on both sides, and move these by Adam.

    The loss is ‖x - x0‖² + c·max(margin left, 0), whose first term needs no queries; differences of
    log-probabilities, as in the paper, are differences of logits. The values are those of a coarse image that
    is enlarged, then of finer and finer ones (the hierarchical attack), at last of the image itself. They are
    drawn by importance: those in regions that changed much are drawn more often. Where the goal is met first,
    Adam starts anew. The nearest success is kept. `batch`, `learning_rate` and Adam's constants
    are the paper's.

    Departures, for budgets that can be paid: c adapts to every query, falling while the goal is met and
    rising while it is not, instead of a binary search over whole runs, and starts at 1, not 0.01; steps grow
    until the goal is met first, since the paper's alone would take tens of thousands of queries to get
    anywhere on a robust network; coarse images come first at any size, and for as long as eight turns of all
    values of the next finer one would take. The box is kept by clipping, not by tanh, and where it cuts one
    side off a slope counts half. The points queried are not files.
    """

    info = Info(
        name="zoo",
        title="Zeroth order optimization",
        norms=("l2",),
        paper="Chen et al. 2017: ZOO: Zeroth Order Optimization Based Black-box Attacks to Deep Neural "
        "Networks without Training Substitute Models",
        url="https://arxiv.org/abs/1708.03999",
        access="scores",
        budget="minimal",
    )

    queries: Queries = 50_000
    batch: Count = Field(128, le=10_000, description="The most values whose slope is estimated in a step.")
    learning_rate: Ratio = Field(
        0.01,
        gt=0,
        le=1,
        description="Adam's: about how far a value moves in a step once the goal was met, and in the first.",
    )
    difference: Ratio = Field(
        1e-3, gt=0, le=1, description="Half the distance between the two queries; the paper's h is 1e-4."
    )
    c: Ratio = Field(1.0, gt=0, le=1e6, description="Weight of the margin at the start.")

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def rounds(self) -> int:
        """One per step, and a few queries at the end."""
        return -(-self.queries // (2 * self.batch + 1)) + 3

    def footprint(self) -> Footprint:
        """The neighbors of a piece, and Adam's state."""
        return replace(super().footprint(), images=26, many=2 * self.batch, each=4)

    def run(self, case: Case) -> Plan:
        """Query points and neighbors together, then move, until the budget is spent."""
        x0, rows = case.threat.x0, torch.arange(len(case), device=case.device)
        best, left, grids = engine.Best.initial(x0), self.queries, _build_grids(x0)
        state, stale = _CoordinateAdam.start(grids.pop(), x0, self.c, self.learning_rate), REFRESH_QUERIES
        while left:
            if grids and self.queries - left >= SWEEPS * 2 * grids[-1].count_values(x0):
                state, stale = state.refine(grids.pop()), REFRESH_QUERIES
            if stale >= REFRESH_QUERIES:
                importance, stale = _importance(case, state.x, state.grid), 0
            wanted = min(self.batch, -(-state.grid.count_values(x0) // MIN_TURN_STEPS), max(left - 2, 0) // 2)
            chosen = _draw_values(case, importance, wanted)
            scored, slope = yield from self._estimate_slopes(case, state, chosen)
            left, stale = left - 2 * wanted - 1, stale + 2 * wanted + 1
            best = best.put(rows, scored)
            pulled = 2 * state.grid.gather(state.x - x0).flatten(1).gather(1, chosen)
            down = pulled - state.c[:, None] * slope
            state = state.step(chosen, down).adapt(scored.score > 0, self.learning_rate)
        return engine.Found(best.x, best.score > 0)

    def _estimate_slopes(
        self, case: Case, state: _CoordinateAdam, chosen: Tensor
    ) -> PlanOf[tuple[Best, Tensor]]:
        """The points with their scores, and the slope of the missing margin in each of the chosen values,
        (B, k).
        """
        x, slopes = state.x, list["Tensor"]()
        here, margin_here = x.new_empty(0), x.new_empty(0)
        for piece in list(engine.cut(chosen.shape[1], 2 * x.numel())) or [slice(0)]:
            first = not slopes  # the points themselves are queried with the first of their neighbors
            neighbors = self._shift(state, chosen[:, piece])
            tried = torch.cat([x[:, None], neighbors], 1) if first else neighbors
            logits = (yield engine.Logits(tried.flatten(0, 1))).logits.view(*tried.shape[:2], -1)
            every = torch.arange(len(x), device=x.device).repeat_interleave(tried.shape[1])
            margin = engine.Margin(case.goal[every])(logits.flatten(0, 1)).clamp_max(0).view(len(x), -1)
            if first:
                here, margin_here, margin = logits[:, 0], margin[:, 0], margin[:, 1:]
            above, below = margin.chunk(2, 1) if margin.shape[1] else (margin, margin)
            slopes.append((above - below) / (2 * self.difference))
        slope = torch.cat(slopes, 1).nan_to_num(0, 0, 0)  # of points without finite logits nothing is known
        nearness = 1 / case.threat.distance(x).clamp_min(TINY)
        score = torch.where(case.goal.is_met(here), nearness, margin_here)
        return engine.Best(x, score), slope

    def _shift(self, state: _CoordinateAdam, chosen: Tensor) -> Tensor:
        """The points moved up, and moved down, by the difference in each of the chosen values (B, k):
        (B, 2k, C, H, W).
        """
        base = state.x[:, None]
        shift = state.grid.enlarge_single(chosen, self.difference, state.x)
        return torch.cat([base + shift, base - shift], 1).clamp_(0, 1)


@dataclass(frozen=True)
class _Grid:
    """An attack space: images of fewer pixels, enlarged to perturbations."""

    down: Tensor  # (H, h)
    right: Tensor  # (W, w)

    def shape(self, x: Tensor) -> tuple[int, int, int]:
        """Channels, height and width."""
        return x.shape[1], self.down.shape[1], self.right.shape[1]

    def count_values(self, x: Tensor) -> int:
        """How many values the attack space has."""
        return math.prod(self.shape(x))

    def enlarge(self, y: Tensor) -> Tensor:
        """Enlarged: (…, h, w) to (…, H, W)."""
        return self.down @ y @ self.right.T

    def enlarge_single(self, chosen: Tensor, value: float, x: Tensor) -> Tensor:
        """For each of the chosen values (B, k) the enlarged image in which it alone is not zero:
        (B, k, C, H, W) for images like `x`.
        """
        height, width = self.shape(x)[1:]
        channel, place = chosen // (height * width), chosen % (height * width)
        down, right = self.down.T[place // width] * value, self.right.T[place % width]
        enlarged = x.new_zeros(*chosen.shape, *x.shape[1:])
        row, column = (torch.arange(size, device=x.device) for size in chosen.shape)
        enlarged[row[:, None], column, channel] = down[..., :, None] * right[..., None, :]
        return enlarged

    def gather(self, d: Tensor) -> Tensor:
        """Slopes in pixels as slopes in this space: (…, H, W) to (…, h, w)."""
        return self.down.T @ d @ self.right


def _build_grids(x: Tensor) -> list[_Grid]:
    """The image's own pixels, half as many along each side, a quarter, and so on."""
    height, width = x.shape[2:]
    scales = takewhile(lambda scale: min(height, width) >= MIN_SIDE * scale, (2**i for i in count(1)))
    return [
        _Grid(*(_interpolation_matrix(side, -(-side // scale), x) for side in (height, width)))
        for scale in (1, *scales)
    ]


def _interpolation_matrix(side: int, few: int, like: Tensor) -> Tensor:
    """The matrix (side, few) of linear interpolation."""
    ones = torch.eye(few, device=like.device, dtype=like.dtype)
    enlarged: Tensor = torch.nn.functional.interpolate(ones[None], side, mode="linear")[0].T
    return enlarged


@dataclass(frozen=True)
class _CoordinateAdam:
    """Adam's state, each value with moments and a count of steps of its own."""

    grid: _Grid
    x: Tensor  # (B, C, H, W)
    mean: Tensor  # (B, C·h·w)
    square: Tensor
    steps: Tensor
    c: Tensor  # (B,)
    rate: Tensor  # (B,)
    met: Tensor  # (B,) whether the goal was met at any step

    @classmethod
    def start(cls, grid: _Grid, x: Tensor, c: float, rate: float) -> _CoordinateAdam:
        zero, none = x.new_zeros(len(x), grid.count_values(x)), x.new_zeros(len(x))
        return cls(grid, x, zero, zero, zero, none + c, none + rate, none > 0)

    def refine(self, grid: _Grid) -> _CoordinateAdam:
        """At the same point in another attack space, with Adam's state reset."""
        zero = self.x.new_zeros(len(self.x), grid.count_values(self.x))
        return replace(self, grid=grid, mean=zero, square=zero, steps=zero)

    def step(self, chosen: Tensor, slope: Tensor) -> _CoordinateAdam:
        """One step down the slopes (B, k) of the chosen values (B, k), inside the box."""
        steps = self.steps.gather(1, chosen) + 1
        mean = DECAY * self.mean.gather(1, chosen) + (1 - DECAY) * slope
        square = DECAY2 * self.square.gather(1, chosen) + (1 - DECAY2) * slope.square()
        down = (mean / (1 - DECAY**steps)) / ((square / (1 - DECAY2**steps)).sqrt() + TINY)
        step = torch.zeros_like(self.mean).scatter(1, chosen, -self.rate[:, None] * down)
        step = self.grid.enlarge(step.view(-1, *self.grid.shape(self.x)))
        return replace(
            self,
            x=(self.x + step).clamp(0, 1),
            mean=self.mean.scatter(1, chosen, mean),
            square=self.square.scatter(1, chosen, square),
            steps=self.steps.scatter(1, chosen, steps),
        )

    def adapt(self, met: Tensor, rate: float) -> _CoordinateAdam:
        """With less weight on the margin where the goal is met, more where not; and faster as long as it
        never was. Where it is met first, Adam starts anew at `rate`.
        """
        first = met & ~self.met
        kept = ~first[:, None]
        faster = torch.where(self.met, self.rate, (self.rate * ADAPT_FACTOR).clamp_max(1))
        return replace(
            self,
            mean=self.mean * kept,
            square=self.square * kept,
            steps=self.steps * kept,
            c=torch.where(met, self.c / ADAPT_FACTOR, self.c * ADAPT_FACTOR).clamp(1e-4, 1e6),
            rate=torch.where(first, rate, faster),
            met=self.met | met,
        )


def _importance(case: Case, x: Tensor, grid: _Grid) -> Tensor:
    """How likely each value is to be drawn, (B, C·h·w): by the largest change in its region, plus a constant.

    In powers of two, so that the noise of floating point hardly ever changes what is drawn.
    """
    change = (x - case.threat.x0).abs()
    pool = torch.nn.functional.adaptive_max_pool2d(change, [min(REGIONS, side) for side in x.shape[2:]])
    weight = torch.nn.functional.interpolate(pool, grid.shape(x)[1:]).flatten(1)
    mean = weight.mean(1, keepdim=True)
    importance: Tensor = (weight / (mean + TINY) + 0.1).log2().round().exp2()
    return importance


def _draw_values(case: Case, importance: Tensor, count: int) -> Tensor:
    """Values drawn without replacement, (B, count): those with the smallest exponential variables."""
    return (case.noise.exponential(importance) / importance).topk(count, 1, largest=False).indices
