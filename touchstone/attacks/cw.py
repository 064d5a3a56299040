"""Carlini & Wagner L2: distance and margin in one loss, followed by Adam, weighed by a search of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import Rows
from touchstone.fields import Askings, Count, Ratio
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan

INSIDE = 1 - 1e-6
"""Black and white lie at infinity in tanh space; originals are drawn in by this factor."""
STALLED = 0.9999
"""A search whose lowest loss is above this part of the lowest at the look before has stopped falling."""
LOOKS, PATIENCE = 10, 20
"""How often in a search the loss is looked at, and after how many steps at the least: Adam's first steps may
lead away.
"""
HOPELESS = 20
"""How many times too small a weight is, if the margin were linear, where a search is not even begun."""
TINY = 1e-30


class CW(MinimalNorm):
    """Carlini & Wagner's L2 attack: minimise ‖δ‖² + c·max(κ - margin, 0) over a point that stays in the box.

    The point is (tanh w + 1)/2 and moves by Adam (section V.A and VI.A). The weight c of every image is
    searched for on its own, tenfold until a search succeeds, then by bisection; the nearest success of all
    steps of all searches is kept. The authors allow up to 10,000 steps to a search; 1,000 are the paper's.

    Weights that are too small by far, as the gradient at the image tells, count as failed without a search. A
    search ends early where its loss has stopped falling, which is looked at ten times, at most every twenty
    steps; that is decided row by row, and a row begins its next search without waiting for others.
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
    abort_early: bool = Field(True, description="End a search once its loss has stopped falling.")
    eot: Askings = 1

    def cost(self) -> Cost:
        """A gradient for every step of every search."""
        steps = self.binary_search_steps * self.steps
        return Cost(forward=steps, backward=steps)

    def run(self, case: Case) -> Plan:
        """Searches, each from the image itself."""
        whole, best = case, engine.Nearest.none(case.threat.x0)
        w0 = to_tanh(case.threat.x0)
        descent, rows = Descent.begin(w0), engine.torch.arange(len(case), device=case.device)
        every = max(PATIENCE, self.steps // LOOKS) if self.abort_early else self.steps
        x = from_tanh(w0)
        answer = yield engine.Gradient(x, engine.Margin(case.goal))
        weight = Weight.begin(case.threat.eps, self.initial_const).raised(answer, self)
        while True:
            found = sure(case, x, answer, self.confidence)
            best = best.put(rows, found)
            loss, grad = self._loss(case, x, answer, weight.c)
            ended = descent.ended(loss, self.steps, every)
            rate = engine.torch.full_like(loss, self.learning_rate)
            descent = descent.moved(in_tanh(x, grad), loss, rate, every, met=found.met)
            if bool(ended.any()):
                weight = weight.after(ended, descent.met)
                descent = descent.again(ended, w0)
                open_ = weight.searches < self.binary_search_steps
                if not bool(open_.any()):
                    return best.found(whole)
                case, rows, w0 = case[open_], rows[open_], w0[open_]
                descent, weight = descent[open_], weight[open_]
            x = from_tanh(descent.w)
            answer = yield engine.Gradient(x, engine.Margin(case.goal))

    def _loss(self, case: Case, x: Tensor, answer: Answer, c: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (B,) and its gradient with respect to the image."""
        d = x - case.threat.x0
        short = (self.confidence - margin_of(answer)).clamp_min(0)
        pull = engine.column(c * (short > 0), x) * answer.gradient
        return d.flatten(1).square().sum(1) + c * short, 2 * d - pull


def margin_of(answer: Answer) -> Tensor:
    """The loss of an answer to a question about the margin."""
    if answer.loss is None:
        raise TypeError("only an answer to a Gradient query has a loss")
    return answer.loss


def sure(case: Case, x: Tensor, answer: Answer, confidence: float) -> Nearest:
    """The points as the model judges them; successes only where the margin is at least κ."""
    found = engine.Nearest.judged(case, x, answer.logits)
    return replace(found, distance=found.distance.masked_fill(found.margin < confidence, engine.torch.inf))


def to_tanh(x: Tensor) -> Tensor:
    """Where images lie in the space without walls."""
    return ((2 * x - 1) * INSIDE).atanh()


def from_tanh(w: Tensor) -> Tensor:
    """The images at these points."""
    return w.tanh().add_(1).div_(2)


def in_tanh(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient in tanh space of a function whose gradient at the images `x` is `grad`."""
    return 2 * x * (1 - x) * grad


@dataclass(frozen=True)
class Adam(Rows):
    """Adam (Kingma & Ba 2015, algorithm 1), each row at a step of its own."""

    mean: Tensor  # (B, C, H, W)
    square: Tensor  # (B, C, H, W)
    count: Tensor  # (B,) steps made

    @classmethod
    def begin(cls, like: Tensor) -> Adam:
        """No step made yet."""
        zero = engine.torch.zeros_like(like)
        return cls(zero, zero, engine.torch.zeros(len(like), device=like.device))

    def step(self, grad: Tensor) -> tuple[Tensor, Adam]:
        """What to add at a learning rate of one, downhill, and the optimiser after it."""
        count = self.count + 1
        mean = self.mean.lerp(grad, 0.1)
        square = self.square.lerp(grad.square(), 0.001)
        fair = (1 - 0.999**count).sqrt()
        move = mean / square.sqrt().div_(engine.column(fair, grad)).add_(1e-8)
        return move.mul_(engine.column(-1 / (1 - 0.9**count), grad)), Adam(mean, square, count)

    def again(self, ended: Tensor) -> Adam:
        """Rows of the mask `ended` forget what they did."""
        wide = engine.column(ended, self.mean)
        return Adam(
            self.mean.masked_fill(wide, 0), self.square.masked_fill(wide, 0), self.count.masked_fill(ended, 0)
        )


@dataclass(frozen=True)
class Descent(Rows):
    """A search under way."""

    w: Tensor  # (B, C, H, W)
    adam: Adam
    lowest: Tensor  # (B,) loss of this search
    before: Tensor  # (B,) the lowest loss when it was looked at last
    met: Tensor  # (B,) whether this search has succeeded

    @classmethod
    def begin(cls, w0: Tensor) -> Descent:
        """At the originals."""
        far = w0.new_full((len(w0),), engine.torch.inf)
        return cls(w0, Adam.begin(w0), far, far, far < 0)

    def looks(self, every: int) -> Tensor:
        """Which rows are to be looked at, (B,)."""
        return self.adam.count % every == 0

    def ended(self, loss: Tensor, steps: int, every: int) -> Tensor:
        """Which rows end their search here, (B,)."""
        last = self.adam.count + 1 >= steps
        stalled = loss.minimum(self.lowest) > STALLED * self.before
        return last | (self.looks(every) & stalled)

    def moved(self, grad: Tensor, loss: Tensor, rate: Tensor, every: int, *, met: Tensor) -> Descent:
        """A step downhill, after a look at the loss where it is time."""
        move, adam = self.adam.step(grad)
        lowest = loss.minimum(self.lowest)
        before = engine.torch.where(self.looks(every), lowest, self.before)
        return Descent(self.w + engine.column(rate, move) * move, adam, lowest, before, self.met | met)

    def again(self, ended: Tensor, w: Tensor) -> Descent:
        """Rows of the mask `ended` begin at `w`."""
        return Descent(
            engine.torch.where(engine.column(ended, w), w, self.w),
            self.adam.again(ended),
            self.lowest.masked_fill(ended, engine.torch.inf),
            self.before.masked_fill(ended, engine.torch.inf),
            self.met & ~ended,
        )


@dataclass(frozen=True)
class Weight(Rows):
    """The weight of the margin against the distance, and between which two the best one lies."""

    c: Tensor  # (B,)
    low: Tensor  # (B,) the largest that was too small
    high: Tensor  # (B,) the smallest that was enough
    searches: Tensor  # (B,) searches done

    @classmethod
    def begin(cls, like: Tensor, c: float) -> Weight:
        """Nothing known yet, for as many rows as `like` has."""
        zero = engine.torch.zeros_like(like)
        return cls(zero + c, zero, zero + engine.torch.inf, zero)

    def raised(self, answer: Answer, attack: CW) -> Weight:
        """Tenfold as often as that is sure to be too little, each time as if a search had failed. `answer` is
        that about the originals.
        """
        short = (attack.confidence - margin_of(answer)).clamp_min(0)
        needed = 2 * short / answer.gradient.flatten(1).square().sum(1).clamp_min(TINY)
        times = (needed / (HOPELESS * self.c)).log10().floor().clamp(0, attack.binary_search_steps - 1)
        c = self.c * 10**times
        return Weight(c, (c / 10).where(times > 0, self.low), self.high, self.searches + times)

    def after(self, ended: Tensor, met: Tensor) -> Weight:
        """The next weight for rows of the mask `ended`, of whose searches those of `met` succeeded."""
        where = engine.torch.where
        low = where(ended & ~met, self.low.maximum(self.c), self.low)
        high = where(ended & met, self.high.minimum(self.c), self.high)
        following = where(high.isinf(), 10 * self.c, (low + high) / 2)
        return Weight(where(ended, following, self.c), low, high, self.searches + ended)
