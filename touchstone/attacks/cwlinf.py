"""Carlini & Wagner L∞: no value is pulled back until it moved further than a threshold, which falls."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.attacks.cw import LOOKS, Descent, from_tanh, in_tanh, margin_of, sure, to_tanh
from touchstone.engine.rows import Rows
from touchstone.fields import Count, Norm, Ratio
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan

SOLVED = 1e-4
"""A loss below this part of c means that both of its terms are as good as zero."""
FINE = 0.1
"""Adam's learning rate is at most this part of τ, or single steps would leap over it."""


class CWLinf(MinimalNorm):
    """Carlini & Wagner's L∞ attack: minimise Σ max(|δ| - τ, 0) + c·max(κ - margin, 0), again and again with
    smaller τ.

    A largest change alone gives a gradient to one value at a time, so all that exceed the threshold τ are
    penalised (section VI.C). A search that finds a nearer success sets τ to a part of its distance and goes
    on from where it is; one that does not doubles the weight c. It ends when τ falls below `smallest`, or c
    rises above `largest_const`. As in `cw`, points are moved by Adam in tanh space, a search ends early
    where the loss has stopped falling, and every row searches at its own pace.

    Departures from the authors' code: 200 steps to a search instead of 1,000, as it goes on from the last;
    a learning rate that falls with τ, and an end of τ far below 1/256, for images that smaller changes
    suffice for.
    """

    info = Info(
        name="cw-linf",
        title="Carlini & Wagner, L∞",
        norms=("linf",),
        paper="Carlini & Wagner 2017: Towards Evaluating the Robustness of Neural Networks",
        url="https://arxiv.org/abs/1608.04644",
        budget="minimal",
    )

    norm: Norm = Field("linf", description="The norm in which the perturbation is measured.")
    steps: Count = Field(200, le=10_000, description="The most steps of one search.")
    confidence: Ratio = Field(
        0.0, ge=0, le=1e6, description="κ: the margin, in logits, that a success needs."
    )
    learning_rate: Ratio = Field(0.01, gt=0, le=10, description="Adam's learning rate in tanh space.")
    initial_const: Ratio = Field(1e-5, ge=1e-9, le=1e6, description="The weight c of the first search.")
    largest_const: Ratio = Field(20.0, gt=0, le=1e6, description="No search has a larger weight c.")
    decrease_factor: Ratio = Field(
        0.9, gt=0, le=0.99, description="τ becomes this part of the distance reached."
    )
    smallest: Ratio = Field(1 / 2048, ge=1e-4, le=1, description="No search has a smaller τ.")
    abort_early: bool = Field(True, description="End a search once its loss has stopped falling.")

    def cost(self) -> Cost:
        """As many searches as τ can fall and c can rise."""
        falls = ceil(log(self.smallest) / log(self.decrease_factor)) + 1
        rises = max(0, ceil(log(self.largest_const / self.initial_const, 2))) + 1
        steps = (falls + rises) * self.steps
        return Cost(forward=steps, backward=steps)

    def run(self, case: Case) -> Plan:
        """Searches, each from where the one before came to."""
        whole, best = case, engine.Nearest.none(case.threat.x0)
        descent = Descent.begin(to_tanh(case.threat.x0))
        level = Level.begin(case.threat.eps, self.initial_const)
        rows = engine.torch.arange(len(case), device=case.device)
        every = max(1, self.steps // LOOKS) if self.abort_early else self.steps
        while len(rows):
            x = from_tanh(descent.w)
            answer = yield engine.Gradient(x, engine.Margin(case.goal))
            found = sure(case, x, answer, self.confidence)
            level = level.seen(found)
            best = best.put(rows, found)
            loss, grad = self._loss(case, x, answer, level)
            ended = descent.ended(loss, self.steps, every)
            ended |= level.nearer & (loss < SOLVED * level.c)
            rate = (level.tau * FINE).clamp_max(self.learning_rate)
            descent = descent.moved(in_tanh(x, grad), loss, rate, every, met=found.met)
            if bool(ended.any()):
                level = level.after(ended, self.decrease_factor)
                descent = descent.again(ended, descent.w)
                open_ = (level.tau > self.smallest) & (level.c <= self.largest_const)
                case, rows, descent, level = case[open_], rows[open_], descent[open_], level[open_]
        return best.found(whole)

    def _loss(self, case: Case, x: Tensor, answer: Answer, level: Level) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient with respect to the image."""
        d = x - case.threat.x0
        excess = (d.abs() - engine.column(level.tau, d)).clamp_min_(0)
        short = (self.confidence - margin_of(answer)).clamp_min(0)
        pull = engine.column(level.c * (short > 0), x) * answer.gradient
        return excess.flatten(1).sum(1) + level.c * short, d.sign() * (excess > 0) - pull


@dataclass(frozen=True)
class Level(Rows):
    """How far values may move for nothing, what the margin weighs, and how near a success has come."""

    tau: Tensor  # (B,)
    c: Tensor  # (B,)
    reached: Tensor  # (B,) the distance of the nearest success
    nearer: Tensor  # (B,) whether this search has come nearer

    @classmethod
    def begin(cls, like: Tensor, c: float) -> Level:
        """The whole box for nothing, for as many rows as `like` has."""
        zero = engine.torch.zeros_like(like)
        return cls(zero + 1, zero + c, zero + engine.torch.inf, zero > 0)

    def seen(self, found: Nearest) -> Level:
        """After another point."""
        nearer = found.distance < self.reached
        return Level(self.tau, self.c, self.reached.minimum(found.distance), self.nearer | nearer)

    def after(self, ended: Tensor, factor: float) -> Level:
        """For the next search of the rows of the mask `ended`: a smaller τ, or else a larger c."""
        where = engine.torch.where
        tau = where(ended & self.nearer, self.tau.minimum(self.reached) * factor, self.tau)
        c = where(ended & ~self.nearer, 2 * self.c, self.c)
        return Level(tau, c, self.reached, self.nearer & ~ended)
