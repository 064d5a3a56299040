"""ZOO: Carlini and Wagner's attack with differences of scores in place of gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Ratio
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Asking, Best, Case, Plan

REGIONS = 8
"""Importance is that of the regions of a grid with so many along each side."""
REFRESHED = 2_000
"""Queries after which importance is looked at anew."""
DECAY, DECAY2, TINY = 0.9, 0.999, 1e-8
ADAPT = 1.1
"""Factor by which c changes at each step."""


class ZOO(MinimalNorm):
    """Zeroth order optimization (algorithms 1 and 2): estimate the slope of Carlini and Wagner's loss in a
    few values of the image at a time, by asking on both sides, and move these by Adam.

    The loss is ‖x - x0‖² + c·max(margin left, 0), whose first term needs no queries; differences of
    log-probabilities, as in the paper, are differences of logits. Values are drawn by importance: those in
    regions that changed much are drawn more often (section 3.4). The nearest success is kept.

    Departures, for budgets that can be paid: c adapts to every look, falling while the goal is met and rising
    while it is not, instead of a binary search over whole runs; the image keeps its size, and the box is kept
    by clipping, not by tanh. The points asked about are no files.
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

    queries: Count = Field(50_000, le=10_000_000, description="Times the model is asked about one image.")
    batch: Count = Field(128, le=10_000, description="Values whose slope is estimated in one step.")
    learning_rate: Ratio = Field(
        0.01, gt=0, le=1, description="Adam's: about how far a value moves in a step."
    )
    difference: Ratio = Field(
        1e-3, gt=0, le=1, description="Half the distance between two askings; the paper's h is 1e-4."
    )
    c: Ratio = Field(0.01, gt=0, le=1e6, description="Weight of the margin at the start.")

    def cost(self) -> Cost:
        """The budget of queries."""
        return Cost(forward=self.queries, backward=0)

    def rounds(self) -> int:
        """One per step, and a few looks at the end."""
        return -(-self.queries // (2 * self.batch + 1)) + 3

    def run(self, case: Case) -> Plan:
        """Look and estimate at once, move, until the budget ends with a look."""
        best, state = engine.Best.none(case.threat.x0), _Adam.start(case.threat.x0, self.c)
        left, importance = self.queries, _importance(case, state.x)
        while left:
            count = min(self.batch, state.x[0].numel(), max(left - 2, 0) // 2)
            chosen = _drawn(case, importance, count)
            seen, slope = yield from self._slopes(case, state.x, chosen)
            left -= 2 * count + 1
            best = best.put(engine.torch.arange(len(case), device=case.device), seen)
            pulled = 2 * (state.x - case.threat.x0).flatten(1).gather(1, chosen)
            state = state.moved(chosen, pulled - state.c[:, None] * slope, self.learning_rate)
            state = state.weighed(seen.score > 0)
            if left // REFRESHED < (left + 2 * count + 1) // REFRESHED:
                importance = _importance(case, state.x)
        return engine.Found(best.x, best.score > 0)

    def _slopes(self, case: Case, x: Tensor, chosen: Tensor) -> Asking[tuple[Best, Tensor]]:
        """Where `x` stands, and how the margin still missing falls with each of the chosen values, (B, k)."""
        torch = engine.torch
        rows, count = chosen.shape
        shift = torch.zeros(rows, count, x[0].numel(), device=x.device)
        shift.scatter_(2, chosen[..., None], self.difference)
        base = x.flatten(1)[:, None]
        asked = torch.cat([base, base + shift, base - shift], 1)
        logits = (yield engine.Logits(asked.view(-1, *x.shape[1:]))).logits
        every = torch.arange(rows, device=x.device).repeat_interleave(2 * count + 1)
        margin = engine.Margin(case.goal[every])(logits).clamp_max(0).view(rows, -1)
        slope = (margin[:, 1 : count + 1] - margin[:, count + 1 :]) / (2 * self.difference)
        here = logits.view(rows, 2 * count + 1, -1)[:, 0]
        nearness = 1 / case.threat.size(x).clamp_min(TINY)
        score = torch.where(case.goal.met(here), nearness, margin[:, 0])
        return engine.Best(x, score), slope


@dataclass(frozen=True)
class _Adam:
    """Adam's state, each value with moments and a count of steps of its own."""

    x: Tensor  # (B, C, H, W)
    mean: Tensor  # (B, C·H·W)
    square: Tensor
    steps: Tensor
    c: Tensor  # (B,)

    @classmethod
    def start(cls, x: Tensor, c: float) -> _Adam:
        zero = engine.torch.zeros_like(x.flatten(1))
        return cls(x, zero, zero, zero, x.new_full((len(x),), c))

    def moved(self, chosen: Tensor, slope: Tensor, rate: float) -> _Adam:
        """One step down the slopes (B, k) of the chosen values (B, k), inside the box."""
        steps = self.steps.gather(1, chosen) + 1
        mean = DECAY * self.mean.gather(1, chosen) + (1 - DECAY) * slope
        square = DECAY2 * self.square.gather(1, chosen) + (1 - DECAY2) * slope.square()
        down = (mean / (1 - DECAY**steps)) / ((square / (1 - DECAY2**steps)).sqrt() + TINY)
        value = (self.x.flatten(1).gather(1, chosen) - rate * down).clamp_(0, 1)
        return replace(
            self,
            x=self.x.flatten(1).scatter(1, chosen, value).view_as(self.x),
            mean=self.mean.scatter(1, chosen, mean),
            square=self.square.scatter(1, chosen, square),
            steps=self.steps.scatter(1, chosen, steps),
        )

    def weighed(self, met: Tensor) -> _Adam:
        """With less weight on the margin where the goal is met, more where not."""
        return replace(self, c=engine.torch.where(met, self.c / ADAPT, self.c * ADAPT).clamp(1e-4, 1e6))


def _importance(case: Case, x: Tensor) -> Tensor:
    """How likely each value is to be drawn, (B, C·H·W): the largest change in its region; even where nothing
    changed.

    In powers of two, so that the noise of floating point hardly ever changes what is drawn.
    """
    torch = engine.torch
    change = (x - case.threat.x0).abs()
    pool = torch.nn.functional.adaptive_max_pool2d(change, [min(REGIONS, side) for side in x.shape[2:]])
    weight = torch.nn.functional.interpolate(pool, x.shape[2:]).flatten(1)
    mean = weight.mean(1, keepdim=True)
    importance: Tensor = (weight / (mean + TINY) + 0.1).log2().round().exp2()
    return importance


def _drawn(case: Case, importance: Tensor, count: int) -> Tensor:
    """Values drawn without replacement, (B, count): those whose exponential clocks ring first."""
    return (case.noise.exponential(importance) / importance).topk(count, 1, largest=False).indices
