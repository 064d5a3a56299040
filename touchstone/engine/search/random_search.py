"""Random search: the loop of attacks that see scores, propose changes and keep those that help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.quantization import LEVELS, SLACK
from touchstone.engine.queries import Found, PlanOf
from touchstone.engine.rows import Rows, column
from touchstone.engine.search.gradient_ascent import (
    SUCCESS_AS_FILE,
    SUCCESS_WITH_CONFIDENCE,
    Best,
    score_successes,
)
from touchstone.engine.threat import Case, Threat

Proposal = Callable[[Threat, Tensor, int, Tensor], Tensor]
"""From the threat, the points (B, C, H, W), the step's number and random numbers (B, draws) in [0,1), to new
points inside the threat.
"""
BLOCK = 64
"""Random numbers are drawn for so many steps at a time: a call for each row and step would take longer than
the pass of a small model.
"""
MIN_PROGRESS = 1e-30


def objective(goal: Goal, logits: Tensor) -> Tensor:
    """What rises towards the goal, (B,): the margin, or the logarithm of a target's probability.

    Untargeted, a probability would not do: near one it does not change in floating point.
    """
    return _objective(goal, logits, Margin(goal)(logits))


def goal_progress(goal: Goal, logits: Tensor) -> Tensor:
    """How near each row is to its goal, (B,): `objective` until it is met, from then on the margin, and
    positive.
    """
    margin = Margin(goal)(logits)
    rises = _objective(goal, logits, margin)
    return torch.where(goal.is_met(logits), margin.clamp_min(MIN_PROGRESS), rises.clamp_max(0))


def _objective(goal: Goal, logits: Tensor, margin: Tensor) -> Tensor:
    if not bool(goal.targeted.any()):
        return margin
    return torch.where(goal.targeted, CrossEntropy(goal)(logits), margin)


def query_progress(case: Case, x: Tensor) -> PlanOf[Tensor]:
    """The progress of the files that the points would become, by one query for each row; where they meet the
    goal with the confidence that the case asks for, a higher one than any without.
    """
    logits = (yield case.query(x)).logits
    progress = goal_progress(case.goal, logits)
    enough = case.is_confident(logits) & (progress > 0)
    return torch.where(enough, score_successes(case, logits, SUCCESS_AS_FILE), progress)


def done_progress(case: Case) -> float:
    """The progress at which a row is done."""
    return MIN_PROGRESS if case.min_confidence is None else SUCCESS_WITH_CONFIDENCE


def round_eps_down(case: Case) -> Case:
    """The case with radii that files can reach exactly; in L∞ points at the ball's ends then are files
    already.
    """
    if not case.quantize or case.threat.norm.name != "linf":
        return case
    levels = (case.threat.eps.double() * LEVELS * (1 + SLACK)).floor()
    eps = (levels / LEVELS).to(case.threat.eps.dtype)
    return replace(case, threat=replace(case.threat, eps=eps))


@dataclass(frozen=True)
class ActiveRows(Rows):
    """The rows that are not done: the point of each, and its progress towards the goal."""

    case: Case
    x: Tensor
    score: Tensor
    row: Tensor  # (B,) its index in the whole batch
    numbers: Tensor  # (B, BLOCK, draws)

    def record(self, best: Best) -> Best:
        """The record with these points."""
        return best.put(self.row, Best(self.x, self.score))

    def accept_better(self, x: Tensor, score: Tensor) -> ActiveRows:
        """Each row at the new point, if that is better."""
        better = score > self.score
        x = torch.where(column(better, x), x, self.x)
        return replace(self, x=x, score=torch.where(better, score, self.score))

    def draw_numbers(self) -> ActiveRows:
        """The same with fresh random numbers for a block of steps."""
        return replace(self, numbers=self.case.noise.uniform(self.numbers))


def random_search(
    case: Case, x: Tensor, propose: Proposal, *, queries: int, draws: int, early_stop: bool
) -> PlanOf[Found]:
    """Query `x`, then a proposal at a time, and move wherever one is better; `queries` in all.

    With `early_stop` a row is done once it met its goal, with the confidence that the case asks for; without,
    it is improved further.
    """
    score = yield from query_progress(case, x)
    numbers = x.new_empty((len(case), BLOCK, draws))
    active = ActiveRows(case, x, score, torch.arange(len(case), device=case.device), numbers)
    best, target = Best.initial(x), done_progress(case)
    for step in range(queries - 1):
        if early_stop and bool((active.score >= target).any()):
            best = active.record(best)
            active = active[active.score < target]
            if not len(active):
                break
        if step % BLOCK == 0:
            active = active.draw_numbers()
        numbers = active.numbers[:, step % BLOCK]
        tried = propose(active.case.threat, active.x, step, numbers)
        active = active.accept_better(tried, (yield from query_progress(active.case, tried)))
    best = active.record(best) if len(active) else best
    return Found(case.as_file(best.x), best.score > 0)
