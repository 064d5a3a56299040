"""Random search: the one loop of attacks that see scores, propose changes and keep those that help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.quantization import LEVELS, SLACK
from touchstone.engine.queries import Asking, Found
from touchstone.engine.rows import Rows, column
from touchstone.engine.search.gradient_ascent import Best
from touchstone.engine.threat import Case, Threat

Propose = Callable[[Threat, Tensor, int, Tensor], Tensor]
"""From the threat, the points (B, C, H, W), the step's number and random numbers (B, draws) in [0,1), others
inside the threat to ask about.
"""
BLOCK = 64
"""Random numbers are drawn for so many steps at a time: a call for each row and step would take longer than
many a model.
"""
LEAST = 1e-30


def rising(goal: Goal, logits: Tensor) -> Tensor:
    """What rises towards the goal, (B,): the margin, or the logarithm of a target's probability.

    Untargeted, a probability would not do: that of a label the model is sure of is one in floating point.
    """
    return _rising(goal, logits, Margin(goal)(logits))


def progress(goal: Goal, logits: Tensor) -> Tensor:
    """How near each row is to its goal, (B,): `rising` until it is met, from then on the margin, and
    positive.
    """
    margin = Margin(goal)(logits)
    rises = _rising(goal, logits, margin)
    return torch.where(goal.met(logits), margin.clamp_min(LEAST), rises.clamp_max(0))


def _rising(goal: Goal, logits: Tensor, margin: Tensor) -> Tensor:
    if not bool(goal.targeted.any()):
        return margin
    return torch.where(goal.targeted, CrossEntropy(goal)(logits), margin)


def asked(case: Case, x: Tensor) -> Asking[Tensor]:
    """The progress of the files that the points would become, by one query for each row."""
    return progress(case.goal, (yield case.question(x)).logits)


def in_whole_levels(case: Case) -> Case:
    """The case with radii that files can reach exactly; in L∞ points at the ball's ends then are files
    already.
    """
    if not case.quantize or case.threat.norm.name != "linf":
        return case
    levels = (case.threat.eps.double() * LEVELS * (1 + SLACK)).floor()
    eps = (levels / LEVELS).to(case.threat.eps.dtype)
    return replace(case, threat=replace(case.threat, eps=eps))


@dataclass(frozen=True)
class Walkers(Rows):
    """The rows still under way: where each stands and how near that is to its goal."""

    case: Case
    x: Tensor
    score: Tensor
    row: Tensor  # (B,) its place in the whole
    numbers: Tensor  # (B, BLOCK, draws)

    def kept(self, best: Best) -> Best:
        """The record with where these stand."""
        return best.put(self.row, Best(self.x, self.score))

    def moved(self, x: Tensor, score: Tensor) -> Walkers:
        """Each at the new point, if that is better."""
        better = score > self.score
        x = torch.where(column(better, x), x, self.x)
        return replace(self, x=x, score=torch.where(better, score, self.score))

    def with_numbers(self) -> Walkers:
        """The same with fresh random numbers for a block of steps."""
        return replace(self, numbers=self.case.noise.uniform(self.numbers))


def walk(
    case: Case, x: Tensor, propose: Propose, *, queries: int, draws: int, early_stop: bool
) -> Asking[Found]:
    """Ask about `x`, then about a proposal at a time, and move wherever one is better; `queries` in all.

    With `early_stop` a row leaves once it met its goal; without, it is driven further.
    """
    score = yield from asked(case, x)
    numbers = x.new_empty((len(case), BLOCK, draws))
    walkers = Walkers(case, x, score, torch.arange(len(case), device=case.device), numbers)
    best = Best.none(x)
    for step in range(queries - 1):
        if early_stop and bool((walkers.score > 0).any()):
            best = walkers.kept(best)
            walkers = walkers[walkers.score <= 0]
            if not len(walkers):
                break
        if step % BLOCK == 0:
            walkers = walkers.with_numbers()
        numbers = walkers.numbers[:, step % BLOCK]
        tried = propose(walkers.case.threat, walkers.x, step, numbers)
        walkers = walkers.moved(tried, (yield from asked(walkers.case, tried)))
    best = walkers.kept(best) if len(walkers) else best
    return Found(case.file(best.x), best.score > 0)
