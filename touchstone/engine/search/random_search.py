"""Random search: the loop of attacks that see scores, propose changes and keep those that help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.loops import repeat
from touchstone.engine.quantization import LEVELS, SLACK
from touchstone.engine.queries import Found, PlanOf
from touchstone.engine.rows import HostNumbers, Loop, RowIndex, column, reads_at_once, to_host
from touchstone.engine.search.gradient_ascent import (
    SUCCESS_AS_FILE,
    SUCCESS_WITH_CONFIDENCE,
    score_successes,
)
from touchstone.engine.threat import Case, Threat

Proposal = Callable[[Threat, Tensor, Sequence[int], Tensor], Tensor]
"""From the threat, the points (B, C, H, W), each one's number of steps so far and random numbers (B, draws)
in [0,1), to new points inside the threat.
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
    if reads_at_once(margin) and not bool(goal.targeted.any()):
        return margin
    return torch.where(goal.targeted, CrossEntropy(goal)(logits), margin)


def query_progress(case: Case, x: Tensor) -> PlanOf[Tensor]:
    """The progress of the files that the points would become, by one query for each row; where they meet the
    goal with the confidence that the case asks for, a higher one than any without.
    """
    logits = (yield case.query(x)).logits
    progress = goal_progress(case.goal, logits)
    if case.min_confidence is None:
        return progress
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
class RandomSearch(Loop):
    """Rows that try a proposal a step and keep what is better."""

    case: Case
    x: Tensor
    score: Tensor  # (B,) the progress of `x` towards the goal
    numbers: Tensor  # (B, BLOCK, draws) random
    propose: Proposal
    steps: HostNumbers  # made so far
    left: HostNumbers
    early_stop: bool

    def successes(self) -> tuple[Tensor, Tensor]:
        """The points as files."""
        rank = torch.full_like(self.score, SUCCESS_AS_FILE).masked_fill(self.score <= 0, -torch.inf)
        return self.case.as_file(self.x), rank

    def step(self) -> PlanOf[RandomSearch]:
        """Try one proposal for each row."""
        numbers = self._draw_numbers()
        steps = self.steps.values.tolist()
        now = RowIndex(step % BLOCK for step in steps).on(numbers.device)
        each = numbers[torch.arange(len(numbers), device=numbers.device), now]
        tried = self.propose(self.case.threat, self.x, steps, each)
        score = yield from query_progress(self.case, tried)
        better = score > self.score
        moved = replace(
            self,
            x=torch.where(column(better, tried), tried, self.x),
            score=torch.where(better, score, self.score),
            numbers=numbers,
            steps=self.steps.add(1),
            left=self.left.add(-1),
        )
        return moved.without_done()

    def without_done(self) -> RandomSearch:
        """The same with no steps left for rows that are done."""
        if not self.early_stop:
            return self
        [done] = to_host(self.score >= done_progress(self.case))
        return replace(self, left=self.left.where_not(done))

    def _draw_numbers(self) -> Tensor:
        """Random numbers of which those of the rows at the start of a block are fresh."""
        due = RowIndex.where(self.steps.values % BLOCK == 0)
        if not len(due):
            return self.numbers
        rows = due.on(self.numbers.device)
        return self.numbers.index_copy(0, rows, self.case.noise[due].uniform(self.numbers[rows]))


def random_search(
    case: Case, x: Tensor, propose: Proposal, *, queries: int, draws: int, early_stop: bool
) -> PlanOf[Found]:
    """Query `x`, then a proposal at a time, and move wherever one is better; `queries` in all.

    With `early_stop` a row is done once it met its goal, with the confidence that the case asks for; without,
    it is improved further.
    """
    score = yield from query_progress(case, x)
    numbers, first = x.new_empty((len(case), BLOCK, draws)), HostNumbers.full(len(case), 0)
    left = HostNumbers.full(len(case), queries - 1)
    start = RandomSearch(case, x, score, numbers, propose, first, left, early_stop)
    ended = yield from repeat(start.without_done())
    return Found(case.as_file(ended.x), ended.score > 0)
