"""The ascent loop that all gradient attacks share, and the record of the best points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Loss, Margin
from touchstone.engine.queries import Answer, FileLogits, Found, Gradient, Logits, PlanOf
from touchstone.engine.rows import Rows, column
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
            return self._or_else(found)
        merged = self[rows]._or_else(found)
        return Best(self.x.index_copy(0, rows, merged.x), self.score.index_copy(0, rows, merged.score))

    def _or_else(self, other: Best) -> Best:
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
    image_of_row = torch.arange(len(case), device=case.device) if image_of_row is None else image_of_row
    best, target = Best.initial(case.threat.x0), target_score(case)
    rows = torch.arange(len(case), device=case.device)
    for _ in range(steps):
        answer = yield Gradient(x, loss)
        scored = yield from score(case, x, answer, best.score[rows])
        best = best.put(rows, scored)
        if early_stop and bool((done := scored.score >= target).any()):
            keep = ~torch.isin(image_of_row, image_of_row[done])
            if not bool(keep.any()):
                return best
            case, x, rule, rows, answer = case[keep], x[keep], rule[keep], rows[keep], answer[keep]
            loss, image_of_row = loss[keep], image_of_row[keep]
        x, rule = yield from take_step(case, x, rule, answer)
    logits = (yield Logits(x)).logits
    return best.put(rows, (yield from score(case, x, Answer(logits, loss(logits)), best.score[rows])))


R = TypeVar("R", bound=StepRule)


def take_step(case: Case, x: Tensor, rule: R, answer: Answer) -> PlanOf[tuple[Tensor, R]]:
    """One step by `rule` from the points that the answer is about."""
    grad = yield from replace_saturated_gradient(case, x, answer)
    if answer.loss is None:
        raise TypeError("the answer has no loss: only a Gradient query gets one")
    return rule.advance(case.threat, x, grad, answer.loss)


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
    loss = CrossEntropy(case.goal)(answer.logits) if answer.loss is None else answer.loss
    loss = loss.clamp_max(MAX_LOSS)
    if not bool(met.any()):
        return Best(x, loss)
    found = torch.where(met, score_successes(case, answer.logits, SUCCESS), loss)
    hoped = score_successes(case, answer.logits, SUCCESS_AS_FILE)
    rows = (met & (hoped > best_score)).nonzero().flatten()
    if not case.quantize or not len(rows):
        return Best(x, found)
    open_ = case[rows]
    logits = (yield FileLogits(open_.snap(x[rows]))).logits
    as_file = score_successes(open_, logits, SUCCESS_AS_FILE)
    return Best(x, found.index_copy(0, rows, torch.where(open_.goal.is_met(logits), as_file, found[rows])))


def replace_saturated_gradient(
    case: Case, x: Tensor, answer: Answer, *, surrogate: Any = None
) -> PlanOf[Tensor]:
    """The answer's gradient; rows where the cross-entropy is so saturated that it is zero get the margin's
    instead. The answer is from the model under attack or, where one is given, from the oracle `surrogate`.
    """
    grad = answer.gradient
    alive = grad.flatten(1).any(1)
    if bool(alive.all()):
        return grad
    flat = ~alive
    instead = (yield Gradient(x[flat], Margin(case.goal[flat]), surrogate=surrogate)).gradient
    return grad.index_copy(0, flat.nonzero().flatten(), instead)


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
