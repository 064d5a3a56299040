"""Carlini & Wagner L∞: only changes beyond a threshold are penalized, and the threshold falls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.attacks.cw import (
    LOSS_CHECKS,
    TINY,
    Descent,
    confident_nearest,
    from_tanh,
    shortfall,
    tanh_gradient,
    to_tanh,
)
from touchstone.engine.rows import Rows
from touchstone.fields import Count, EotSamples, Norm, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan

SOLVED_SHARE = 1e-4
"""A loss below this share of c means that both of its terms are nearly zero."""
MIN_CHECK_INTERVAL = 20
"""The least steps between two checks of the loss."""
HOPELESS_FACTOR = 20
"""A weight so many times too small for a linear margin is skipped without a search."""
MIN_PACE = 0.1
"""The share of τ to which failed searches reduce the learning rate at most."""


class CWLinf(MinimalNorm):
    """Carlini & Wagner's L∞ attack: minimize Σ max(|δ| - τ, 0) + c·max(κ - margin, 0), again and again with
    smaller τ.

    A largest change alone gives a gradient to one value at a time, so all that exceed the threshold τ are
    penalized (section VI.C). A search that finds a nearer success sets τ to a part of its distance and goes
    on from where it is; one that does not doubles the weight c. It ends when τ falls below `smallest`, or c
    rises above `largest_const`. As in `cw`, points are moved by Adam in tanh space, a search ends early
    where the loss has stopped falling, weights that are too small by far count as failed without a search,
    and every row searches at its own pace.

    Departures from the authors' code: a learning rate of at most τ, which each failed search halves until it
    is a tenth of τ, since large steps are quick and then leap over the threshold; τ takes back half of its
    last fall where a search has failed, so that it closes in on the distance that can be reached; 100 steps
    to a search instead of 1,000, as it goes on from the last; and an end of τ far below 1/256, for images
    that smaller changes suffice for.
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
    steps: Count = Field(100, le=10_000, description="The most steps of one search.")
    confidence: Ratio = Field(
        0.0, ge=0, le=1e6, description="κ: the margin, in logits, that a success needs."
    )
    learning_rate: Ratio = Field(0.1, gt=0, le=10, description="Adam's learning rate in tanh space.")
    initial_const: Ratio = Field(1e-5, ge=1e-9, le=1e6, description="The weight c of the first search.")
    largest_const: Ratio = Field(20.0, gt=0, le=1e6, description="No search has a larger weight c.")
    decrease_factor: Ratio = Field(
        0.9, gt=0, le=0.99, description="τ becomes this part of the distance reached."
    )
    smallest: Ratio = Field(1 / 2048, ge=1e-4, le=1, description="No search has a smaller τ.")
    abort_early: bool = Field(True, description="End a search once its loss has stopped falling.")
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """As many searches as τ can fall and c can rise; of every rise, τ may fall once more."""
        falls = ceil(log(self.smallest) / log(self.decrease_factor)) + 1
        rises = max(0, ceil(log(self.largest_const / self.initial_const, 2))) + 1
        steps = (falls + 2 * rises) * self.steps
        return Cost(forward=steps, backward=steps)

    def run(self, case: Case) -> Plan:
        """Searches, each from where the one before came to."""
        whole, best = case, engine.Nearest.initial(case.threat.x0)
        descent = Descent.start(to_tanh(case.threat.x0))
        rows = torch.arange(len(case), device=case.device)
        every = max(MIN_CHECK_INTERVAL, self.steps // LOSS_CHECKS) if self.abort_early else self.steps
        x = from_tanh(descent.w)
        answer = yield engine.Gradient(x, engine.Margin(case.goal))
        level = Threshold.start(case.threat.eps, self.initial_const).raise_weight(answer, self.largest_const)
        while True:
            found = confident_nearest(case, x, answer, self.confidence)
            level = level.observe(found)
            best = best.put(rows, found)
            loss, grad = self._loss(case, x, answer, level)
            ended = descent.find_ended(loss, self.steps, every)
            ended |= level.improved & (loss < SOLVED_SHARE * level.c)
            rate = (level.tau * level.pace).clamp_max(self.learning_rate)
            descent = descent.step(tanh_gradient(x, grad), loss, rate, every, met=found.met)
            if bool(ended.any()):
                level = level.update(ended, self.decrease_factor)
                descent = descent.restart(ended, descent.w)
                open_ = (level.tau > self.smallest) & (level.c <= self.largest_const)
                if not bool(open_.any()):
                    return best.to_found(whole)
                case, rows, descent, level = case[open_], rows[open_], descent[open_], level[open_]
            x = from_tanh(descent.w)
            answer = yield engine.Gradient(x, engine.Margin(case.goal))

    def _loss(self, case: Case, x: Tensor, answer: Answer, level: Threshold) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient with respect to the image."""
        d = x - case.threat.x0
        excess = (d.abs() - engine.column(level.tau, d)).clamp_min_(0)
        short, slope = shortfall(answer, self.confidence, level.c)
        return excess.flatten(1).sum(1) + short, d.sign() * (excess > 0) + slope


@dataclass(frozen=True)
class Threshold(Rows):
    """The threshold τ, the weight of the margin, the learning rate and the nearest success."""

    tau: Tensor  # (B,)
    c: Tensor  # (B,)
    pace: Tensor  # (B,) the learning rate is at most this part of τ
    best_distance: Tensor  # (B,) the distance of the nearest success
    improved: Tensor  # (B,) whether this search has come nearer

    @classmethod
    def start(cls, like: Tensor, c: float) -> Threshold:
        """A threshold of the whole box, for as many rows as `like` has."""
        zero = torch.zeros_like(like)
        return cls(zero + 1, zero + c, zero + 1, zero + torch.inf, zero > 0)

    def raise_weight(self, answer: Answer, largest: float) -> Threshold:
        """With c doubled while it is far too small for any change beyond τ to lower the loss; `answer` is
        that for the originals.
        """
        needed = 1 / answer.gradient.flatten(1).abs().amax(1).clamp_min(TINY)
        times = (needed / (HOPELESS_FACTOR * self.c)).log2().floor().clamp_min(0)
        return replace(self, c=(self.c * 2**times).clamp_max(largest).maximum(self.c))

    def observe(self, found: Nearest) -> Threshold:
        """After another point."""
        nearer = found.distance < self.best_distance
        return replace(
            self, best_distance=self.best_distance.minimum(found.distance), improved=self.improved | nearer
        )

    def update(self, ended: Tensor, factor: float) -> Threshold:
        """For the next search of the rows of the mask `ended`."""
        where, failed = torch.where, ended & ~self.improved
        fallen = self.tau.minimum(self.best_distance) * factor
        back = (self.tau + self.best_distance.minimum(self.tau / factor)) / 2
        return Threshold(
            where(failed, back, where(ended, fallen, self.tau)),
            where(failed, 2 * self.c, self.c),
            where(failed, (self.pace / 2).clamp_min(MIN_PACE), self.pace),
            self.best_distance,
            self.improved & ~ended,
        )
