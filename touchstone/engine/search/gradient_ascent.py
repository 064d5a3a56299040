"""The ascent loop that all gradient attacks share, and the record of the best points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Loss, Margin
from touchstone.engine.loops import repeat, run_steps
from touchstone.engine.queries import Answer, FileLogits, Found, Gradient, Logits, PlanOf, Repeat
from touchstone.engine.rows import HostNumbers, Loop, RowIndex, Rows, column, to_host
from touchstone.engine.threat import Case, Threat


class StepRule(Protocol):
    """How a point moves, given the gradient at it; a rule with state returns its next state."""

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:
        """The next points, inside the threat, and the rule for the step after; `loss` (B,) is that of `x`."""
        ...

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The rule for the selected rows."""
        ...


@dataclass(frozen=True)
class SteepestAscent(Rows):
    """A step of fixed size in the norm's steepest direction: the rule of FGSM, BIM and PGD."""

    size: Tensor  # (B,)

    def advance(  # noqa: D102
        self,
        threat: Threat,
        x: Tensor,
        grad: Tensor,
        loss: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Self]:
        return threat.step(x, grad, self.size), self


MAX_LOSS = 1e29
SUCCESS, SUCCESS_AS_FILE, SUCCESS_WITH_CONFIDENCE = 1e30, 3e30, 9e30
"""Scores above every loss: the goal was met; after rounding to 8 bits, too; and with the confidence that the
case asks for. Each is the least of its kind: up to twice as much, the score rises with the confidence.
"""
ODDS_SCALE = 10.0
"""Log-odds that are three quarters of the way up from the least score of a success to the highest."""


@dataclass(frozen=True)
class Best(Rows):
    """The best point of every row so far: one that meets the goal after rounding, else one that meets it,
    else any; of successes the most confident one, of others the one of highest loss.
    """

    x: Tensor  # (B, C, H, W)
    score: Tensor  # (B,) the loss, or what `score_successes` gives

    @classmethod
    def initial(cls, x0: Tensor) -> Best:
        """Nothing found yet: every finite loss is better."""
        return cls(x0, x0.new_full((len(x0),), -torch.inf))

    def put(self, rows: Tensor, found: Best) -> Best:
        """This record with the better points of `found` in the rows of index vector `rows`; of equals the
        earlier stays.
        """
        if len(rows) == len(self):
            return self.or_else(found)
        merged = self[rows].or_else(found)
        return Best(self.x.index_copy(0, rows, merged.x), self.score.index_copy(0, rows, merged.score))

    def or_else(self, other: Best) -> Best:
        """The better of two records, row by row; of equals this one."""
        better = other.score > self.score
        return Best(
            torch.where(column(better, self.x), other.x, self.x), torch.where(better, other.score, self.score)
        )

    def to_found(self) -> Found:
        """As the result of a plan."""
        return Found(self.x, self.score >= SUCCESS, self.score)


def climb(
    case: Case,
    x: Tensor,
    rule: StepRule,
    *,
    steps: int,
    early_stop: bool,
    loss: Loss | None = None,
    image_of_row: Tensor | None = None,
) -> PlanOf[Best]:
    """Follow `rule` uphill from `x` for `steps` steps; every point is scored, the one after the last step
    included.

    With `early_stop` a row is done as soon as it meets its goal after rounding (or at all, where the case
    does not quantize), with the confidence that the case asks for, and with it all rows of the same image,
    which have the same number in `image_of_row` (B,). Else the most confident success is kept. `loss` is what
    to climb instead of the cross-entropy.
    """
    loss = CrossEntropy(case.goal) if loss is None else loss
    rows, best = len(case), Best.initial(case.threat.x0)
    images = None if image_of_row is None else HostNumbers.of(image_of_row.tolist())
    left, none = HostNumbers.full(rows, steps), HostNumbers.full(rows, 0)
    start = Climb(case, x, rule, loss, best, left, none, none, images, early_stop)
    if images is None:
        ended = yield from repeat(start)
    else:  # rows of one image end together, so they cannot be told from those of other jobs
        question = Repeat(start)
        yield from run_steps(question)
        ended = question.loop
    index = RowIndex.where(ended.stopped.values == 0)
    if not len(index):
        return ended.best
    last = ended[index]
    logits = (yield Logits(last.x)).logits
    scored = yield from score(last.case, last.x, Answer(logits, last.loss(logits)), last.best.score)
    return ended.best.put(index.on(case.device), scored)


@dataclass(frozen=True)
class Climb(Loop):
    """Rows that follow a rule uphill, each for so many steps as it has left."""

    case: Case
    x: Tensor
    rule: StepRule
    loss: Loss
    best: Best
    left: HostNumbers  # steps
    met: HostNumbers  # 1 where a row has met its goal at some point
    stopped: HostNumbers  # 1 where a row is done before its last step
    images: HostNumbers | None  # rows with the same number end together
    early_stop: bool

    def successes(self) -> tuple[Tensor, Tensor]:
        """The best points, with their scores where they meet the goal."""
        score = self.best.score
        return self.best.x, score.masked_fill(score < SUCCESS, -torch.inf)

    def step(self) -> PlanOf[Climb]:
        """Query the gradient, keep the point where it is better, and move on."""
        answer = yield Gradient(self.x, self.loss)
        met, moves, looks = self._judge(answer)
        scored = Best(self.x, answer.known_loss.clamp_max(MAX_LOSS))
        done = [False] * len(met)
        if any(met):
            scored = yield from score_met(self.case, self.x, answer, RowIndex.where(looks))
            done = self._find_done(scored)
        best = self.best.or_else(scored)
        left = self.left.add(-1).where_not(done)
        ended = replace(
            self,
            best=best,
            left=left,
            met=HostNumbers(self.met.values | np.asarray(met)),
            stopped=HostNumbers(np.asarray(done, np.int64)),
        )
        if all(done):
            return ended
        flat = RowIndex.where(not (moved or stop) for moved, stop in zip(moves, done, strict=True))
        grad = answer.gradient
        if len(flat):
            instead = yield Gradient(self.x[flat.on(grad.device)], Margin(self.case.goal[flat]), of_rows=flat)
            grad = grad.index_copy(0, flat.on(grad.device), instead.gradient)
        x, rule = self.rule.advance(self.case.threat, self.x, grad, answer.known_loss)
        return replace(ended, x=x, rule=rule)

    def _judge(self, answer: Answer) -> tuple[list[bool], list[bool], list[bool]]:
        """Which rows meet the goal, which have a gradient, and which are worth a look as files: of rows that
        never met it before all that do.
        """
        met = self.case.goal.is_met(answer.logits)
        flags = [met, answer.gradient.flatten(1).any(1)]
        if self.case.quantize and self.met.values.any():
            flags.append(met & (score_successes(self.case, answer.logits, SUCCESS_AS_FILE) > self.best.score))
        lists = to_host(*flags)
        looks = lists[-1] if len(flags) > 2 else lists[0]
        return lists[0], lists[1], looks if self.case.quantize else []

    def _find_done(self, scored: Best) -> list[bool]:
        """Which rows have reached what they were after, with those of the same image."""
        if not self.early_stop:
            return [False] * len(self.left)
        [done] = to_host(scored.score >= target_score(self.case))
        if self.images is None or not any(done):
            return done
        images = self.images.values
        together: list[bool] = np.isin(images, images[np.asarray(done)]).tolist()
        return together


R = TypeVar("R", bound=StepRule)


def take_step(case: Case, x: Tensor, rule: R, answer: Answer) -> PlanOf[tuple[Tensor, R]]:
    """One step by `rule` from the points that the answer is about."""
    grad = yield from replace_saturated_gradient(case, x, answer)
    return rule.advance(case.threat, x, grad, answer.known_loss)


def target_score(case: Case) -> float:
    """The score at which a row is done."""
    if case.min_confidence:
        return SUCCESS_WITH_CONFIDENCE
    return SUCCESS_AS_FILE if case.quantize else SUCCESS


def score_successes(case: Case, logits: Tensor, least: float) -> Tensor:
    """Scores (B,) of points that meet the goal with these logits, from `least` up by their confidence."""
    start = torch.full_like(logits[:, 0], least)
    if least == SUCCESS_AS_FILE or not case.quantize:
        start = start.masked_fill(case.is_confident(logits), SUCCESS_WITH_CONFIDENCE)
    odds = case.goal.log_odds(logits).clamp(-MAX_LOSS, MAX_LOSS)
    return start * (1 + (1 + odds / (ODDS_SCALE + odds.abs())) / 2)


def score(case: Case, x: Tensor, answer: Answer, best_score: Tensor) -> PlanOf[Best]:
    """Score the points by their answer; those that meet the goal are queried again as 8-bit files, unless
    they would be no better than the best.

    `best_score` (B,) is the best score of each row before.
    """
    met = case.goal.is_met(answer.logits)
    hoped = score_successes(case, answer.logits, SUCCESS_AS_FILE)
    [looks] = to_host(met & (hoped > best_score) & case.quantize)
    return (yield from score_met(case, x, answer, RowIndex.where(looks)))


def score_met(case: Case, x: Tensor, answer: Answer, looks: RowIndex) -> PlanOf[Best]:
    """Score the points by their answer, and those of the rows in `looks`, which meet the goal, as files."""
    met = case.goal.is_met(answer.logits)
    loss = CrossEntropy(case.goal)(answer.logits) if answer.loss is None else answer.loss
    found = torch.where(met, score_successes(case, answer.logits, SUCCESS), loss.clamp_max(MAX_LOSS))
    if not len(looks):
        return Best(x, found)
    rows, open_ = looks.on(x.device), case[looks]
    logits = (yield FileLogits(open_.snap(x[rows]), of_rows=looks)).logits
    as_file = score_successes(open_, logits, SUCCESS_AS_FILE)
    return Best(x, found.index_copy(0, rows, torch.where(open_.goal.is_met(logits), as_file, found[rows])))


def replace_saturated_gradient(
    case: Case, x: Tensor, answer: Answer, *, surrogate: Any = None
) -> PlanOf[Tensor]:
    """The answer's gradient; rows where the cross-entropy is so saturated that it is zero get the margin's
    instead. The answer is from the model under attack or, where one is given, from the oracle `surrogate`.
    """
    grad = answer.gradient
    [alive] = to_host(grad.flatten(1).any(1))
    flat = RowIndex.where(not moves for moves in alive)
    if not len(flat):
        return grad
    rows, loss = flat.on(grad.device), Margin(case.goal[flat])
    instead = yield Gradient(x[rows], loss, surrogate=surrogate, of_rows=flat)
    return grad.index_copy(0, rows, instead.gradient)


def run_restarts(
    case: Case, times: int, attempt: Callable[[Case], PlanOf[Best]], *, early_stop: bool
) -> PlanOf[Best]:
    """Make up to `times` attempts on rows that are not done, and keep the best of each row."""
    best = yield from attempt(case)
    for _ in range(times - 1):
        open_ = (
            best.score < target_score(case) if early_stop else torch.ones_like(best.score, dtype=torch.bool)
        )
        if not bool(open_.any()):
            break
        best = best.put(open_.nonzero().flatten(), (yield from attempt(case[open_])))
    return best
