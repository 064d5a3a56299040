"""Carlini & Wagner L2: distance and margin in one loss, minimized by Adam, with a search for the weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import Rows
from touchstone.fields import Count, EotSamples, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan

TANH_MARGIN = 1 - 1e-6
"""Black and white lie at infinity in tanh space; originals are drawn in by this factor."""
STALLED_SHARE = 0.9999
"""A search whose lowest loss is above this share of the lowest at the check before has stopped falling."""
LOSS_CHECKS, MIN_CHECK_INTERVAL = 10, 10
"""How often the loss is checked in a search, and the least steps between two checks: Adam's first steps may
increase it.
"""
SETTLED_SHARE = 0.98
"""A search that ends above this share of the distance before it is the last."""
FIRST_WEIGHT_FACTOR, MAX_RAISES = 2, 8
"""The first weight is at least so many times what a linear margin needs, after at most so many tenfold
raises.
"""
MAX_SLOPE = 1e18
"""Slopes are clipped to this size, so that their squares in Adam stay finite."""
TINY = 1e-30


class CW(MinimalNorm):
    """Carlini & Wagner's L2 attack: minimize ‖δ‖² + c·max(κ - margin, 0) over a point that stays in the box.

    The point is (tanh w + 1)/2 and moves by Adam (section V.A and VI.A). The weight c of every image is
    searched for on its own, tenfold until a search succeeds; the nearest success of all steps of all searches
    is kept. The authors allow up to 10,000 steps to a search; 1,000 are the paper's.

    Departures: the first c is raised tenfold until a linear margin would give way to it. After a success c is
    not bisected, but set to where the pulls of both terms, in tanh space, are equally strong at the nearest
    success: at the nearest point of all they cancel. The next search begins at the best point so far. A
    search ends early where its loss has stopped falling, which is checked ten times, at most every ten
    steps, and the attack ends after a search that came less than 2% nearer. All that is decided row by row,
    and a row begins its next search without waiting for others.
    """

    info = Info(
        name="cw",
        title="Carlini & Wagner, L2",
        norms=("l2",),
        paper="Carlini & Wagner 2017: Towards Evaluating the Robustness of Neural Networks",
        url="https://arxiv.org/abs/1608.04644",
        budget="minimal",
    )

    steps: Count = Field(1_000, le=10_000, description="The most steps of one search.")
    binary_search_steps: Count = Field(9, le=20, description="Searches, each with another weight c.")
    confidence: Ratio = Field(
        0.0, ge=0, le=1e6, description="κ: the margin, in logits, that a success needs."
    )
    learning_rate: Ratio = Field(0.01, gt=0, le=10, description="Adam's learning rate in tanh space.")
    initial_const: Ratio = Field(0.001, gt=0, le=1e6, description="The weight c of the first search.")
    abort_early: bool = Field(
        True, description="End a search once its loss has stopped falling, and the last once it hardly helps."
    )
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """A gradient for every step of every search."""
        steps = self.binary_search_steps * self.steps
        return Cost(forward=steps, backward=steps)

    def run(self, case: Case) -> Plan:
        """Searches, the first from the image itself."""
        whole, best = case, engine.Nearest.initial(case.threat.x0)
        x = case.threat.x0
        answer = yield engine.Gradient(x, engine.Margin(case.goal))
        descent, weight = Descent.start(to_tanh(x)), MarginWeight.start(answer, self)
        rows = torch.arange(len(case), device=case.device)
        every = max(MIN_CHECK_INTERVAL, self.steps // LOSS_CHECKS) if self.abort_early else self.steps
        while True:
            found = confident_nearest(case, x, answer, self.confidence)
            best, weight = best.put(rows, found), weight.observe(case, found, answer.gradient)
            loss, grad = self._loss(case, x, answer, weight.c)
            ended = descent.find_ended(loss, self.steps, every)
            rate = torch.full_like(loss, self.learning_rate)
            descent = descent.step(tanh_gradient(x, grad), loss, rate, every, met=found.met)
            if bool(ended.any()):
                open_ = ~ended | self._continues(weight)
                weight = weight.update(ended, descent.met)
                descent = descent.restart(ended, to_tanh(best.x[rows]))
                if not bool(open_.any()):
                    return best.to_found(whole)
                case, rows, descent, weight = case[open_], rows[open_], descent[open_], weight[open_]
            x = from_tanh(descent.w)
            answer = yield engine.Gradient(x, engine.Margin(case.goal))

    def _continues(self, weight: MarginWeight) -> Tensor:
        """Which rows have another search, were this one's over, (B,)."""
        more = weight.searches + 1 < self.binary_search_steps
        return more & ~weight.is_settled() if self.abort_early else more

    def _loss(self, case: Case, x: Tensor, answer: Answer, c: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient with respect to the image."""
        d = x - case.threat.x0
        short, slope = shortfall(answer, self.confidence, c)
        return d.flatten(1).square().sum(1) + short, 2 * d + slope


def margin_of(answer: Answer) -> Tensor:
    """The loss of an answer to a question about the margin."""
    if answer.loss is None:
        raise TypeError("only an answer to a Gradient query has a loss")
    return answer.loss


def shortfall(answer: Answer, confidence: float, c: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the margin falls short of κ, times c (B,), and its gradient with respect to the image."""
    short = (confidence - margin_of(answer)).clamp_min(0)
    slope = engine.column(-c * (short > 0), answer.gradient) * answer.gradient
    return c * short, slope.clamp_(-MAX_SLOPE, MAX_SLOPE)


def confident_nearest(case: Case, x: Tensor, answer: Answer, confidence: float) -> Nearest:
    """The record of these points, with success only where the margin is at least κ."""
    found = engine.Nearest.from_logits(case, x, answer.logits)
    return replace(found, distance=found.distance.masked_fill(found.margin < confidence, torch.inf))


def to_tanh(x: Tensor) -> Tensor:
    """Images in tanh space, which has no bounds."""
    return ((2 * x - 1) * TANH_MARGIN).atanh()


def from_tanh(w: Tensor) -> Tensor:
    """The images at these points."""
    return w.tanh().add_(1).div_(2)


def tanh_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient in tanh space of a function whose gradient at the images `x` is `grad`."""
    return 2 * x * (1 - x) * grad


@dataclass(frozen=True)
class Adam(Rows):
    """Adam (Kingma & Ba 2015, algorithm 1), each row at a step of its own."""

    mean: Tensor  # (B, C, H, W)
    square: Tensor  # (B, C, H, W)
    count: Tensor  # (B,) steps made

    @classmethod
    def start(cls, like: Tensor) -> Adam:
        """No step made yet."""
        zero = torch.zeros_like(like)
        return cls(zero, zero, torch.zeros(len(like), device=like.device))

    def step(self, grad: Tensor) -> tuple[Tensor, Adam]:
        """What to add at a learning rate of one, downhill, and the optimizer after it."""
        count = self.count + 1
        mean = self.mean.lerp(grad, 0.1)
        square = self.square.lerp(grad.square(), 0.001)
        fair = (1 - 0.999**count).sqrt()
        move = mean / square.sqrt().div_(engine.column(fair, grad)).add_(1e-8)
        return move.mul_(engine.column(-1 / (1 - 0.9**count), grad)), Adam(mean, square, count)

    def reset(self, ended: Tensor) -> Adam:
        """Rows of the mask `ended` start anew."""
        wide = engine.column(ended, self.mean)
        return Adam(
            self.mean.masked_fill(wide, 0), self.square.masked_fill(wide, 0), self.count.masked_fill(ended, 0)
        )


@dataclass(frozen=True)
class Descent(Rows):
    """A running search."""

    w: Tensor  # (B, C, H, W)
    adam: Adam
    lowest: Tensor  # (B,) loss of this search
    before: Tensor  # (B,) the lowest loss at the last check
    met: Tensor  # (B,) whether this search has succeeded

    @classmethod
    def start(cls, w0: Tensor) -> Descent:
        """At the originals."""
        far = w0.new_full((len(w0),), torch.inf)
        return cls(w0, Adam.start(w0), far, far, far < 0)

    def is_check(self, every: int) -> Tensor:
        """Which rows have a check at this step, (B,)."""
        return self.adam.count % every == 0

    def find_ended(self, loss: Tensor, steps: int, every: int) -> Tensor:
        """Which rows end their search here, (B,)."""
        last = self.adam.count + 1 >= steps
        stalled = loss.minimum(self.lowest) > STALLED_SHARE * self.before
        return last | (self.is_check(every) & stalled)

    def step(self, grad: Tensor, loss: Tensor, rate: Tensor, every: int, *, met: Tensor) -> Descent:
        """A step downhill, after a check of the loss where one is due."""
        move, adam = self.adam.step(grad)
        lowest = loss.minimum(self.lowest)
        before = torch.where(self.is_check(every), lowest, self.before)
        return Descent(self.w + engine.column(rate, move) * move, adam, lowest, before, self.met | met)

    def restart(self, ended: Tensor, w: Tensor) -> Descent:
        """Rows of the mask `ended` begin at `w`."""
        return Descent(
            torch.where(engine.column(ended, w), w, self.w),
            self.adam.reset(ended),
            self.lowest.masked_fill(ended, torch.inf),
            self.before.masked_fill(ended, torch.inf),
            self.met & ~ended,
        )


@dataclass(frozen=True)
class MarginWeight(Rows):
    """The weight of the margin against the distance, and what its next value depends on."""

    c: Tensor  # (B,)
    nearest: Tensor  # (B,) distance of the nearest success
    balance: Tensor  # (B,) the weight at which both terms pull equally hard there
    before: Tensor  # (B,) distance of the nearest success when a search ended last
    searches: Tensor  # (B,) searches done

    @classmethod
    def start(cls, answer: Answer, attack: CW) -> MarginWeight:
        """The first of the tenfold weights that would suffice if the margin were linear, with the slope at
        the originals.
        """
        short = (attack.confidence - margin_of(answer)).clamp_min(0)
        needed = FIRST_WEIGHT_FACTOR * 2 * short / answer.gradient.flatten(1).square().sum(1).clamp_min(TINY)
        times = (needed / attack.initial_const).log10().ceil().clamp(0, MAX_RAISES)
        far = torch.full_like(short, torch.inf)
        c = attack.initial_const * 10**times
        return cls(c, far, c, far, torch.zeros_like(short))

    def observe(self, case: Case, found: Nearest, grad: Tensor) -> MarginWeight:
        """After more points, with the gradient of their margin."""
        nearer = found.distance < self.nearest
        if not bool(nearer.any()):
            return self
        d = 2 * (found.x - case.threat.x0)
        pulls = (engine.L2().size(tanh_gradient(found.x, one)) for one in (d, grad))
        balance = next(pulls) / next(pulls).clamp_min(TINY)
        balance = torch.where(nearer, balance, self.balance)
        return replace(self, nearest=self.nearest.minimum(found.distance), balance=balance)

    def update(self, ended: Tensor, met: Tensor) -> MarginWeight:
        """The next weight for rows of the mask `ended`, of whose searches those of `met` succeeded."""
        where = torch.where
        c = where(ended, where(met, self.balance, 10 * self.c), self.c)
        before = where(ended, self.nearest, self.before)
        return MarginWeight(c, self.nearest, self.balance, before, self.searches + ended)

    def is_settled(self) -> Tensor:
        """Which rows have succeeded before, and have come hardly nearer in this search, (B,)."""
        return self.nearest > SETTLED_SHARE * self.before
