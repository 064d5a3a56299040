"""What an attack on one image has met so far, for the day that its deadline passes before its end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from touchstone.engine.pieces import cut
from touchstone.engine.plans import rewrite_queries
from touchstone.engine.queries import Answer, AnyQuery, FileLogits, NoisyLogits, PlanOf, Repeat
from touchstone.engine.rows import Loop
from touchstone.engine.search.gradient_ascent import SUCCESS, SUCCESS_AS_FILE, score_successes
from touchstone.engine.threat import Case
from touchstone.evaluation.judgment import are_allowed

T = TypeVar("T")

COPIES = 16
"""Tensors in the size of a point that measuring its distance takes: points are measured in pieces."""


@dataclass
class SuccessRecord:
    """The best success among the points that were queried: the nearest, or the strongest of fixed budget."""

    case: Case  # of one row
    by_distance: bool
    best: Tensor | None = None  # (1, C, H, W)
    rank: float = -torch.inf

    def note(self, x: Tensor, logits: Tensor, *, files: bool) -> None:
        """Note points (n, C, H, W) of the image, with what the model said of them (n, K)."""
        goal = self.case.goal[torch.zeros(len(x), dtype=torch.long, device=x.device)]
        met = goal.is_met(logits).nonzero().flatten()
        for piece in cut(len(met), COPIES * x[:1].numel()):
            self._note_met(x[met[piece]], logits[met[piece]], files=files)

    def _note_met(self, x: Tensor, logits: Tensor, *, files: bool) -> None:
        """Note points that meet the goal, wherever they are."""
        case = self.case[torch.zeros(len(x), dtype=torch.long, device=x.device)]
        rows = are_allowed(case.threat, x, files=files).nonzero().flatten()
        if not len(rows):
            return
        least = SUCCESS_AS_FILE if files else SUCCESS
        rank = -case.threat.distance(x) if self.by_distance else score_successes(case, logits, least)
        self._note_ranked(x[rows], rank[rows])

    def note_loop(self, loop: Loop) -> None:
        """Note what the rows of a loop, all of the image, have met so far."""
        x, rank = loop.successes()
        case = self.case[torch.zeros(len(x), dtype=torch.long, device=x.device)]
        rows = ((rank > -torch.inf) & are_allowed(case.threat, x, files=False)).nonzero().flatten()
        if len(rows):
            self._note_ranked(x[rows], rank[rows])

    def _note_ranked(self, x: Tensor, rank: Tensor) -> None:
        highest, place = rank.max(0)
        if float(highest) > self.rank:
            self.best, self.rank = x[place][None].clone(), float(highest)


def record_successes(plan: PlanOf[T], record: SuccessRecord) -> PlanOf[T]:
    """A plan for one image whose successes are noted on the way."""
    return rewrite_queries(plan, partial(_note, record))


def _note(record: SuccessRecord, query: AnyQuery) -> PlanOf[Answer]:
    if isinstance(query, Repeat):
        try:
            return (yield query)
        finally:
            record.note_loop(query.loop)
    answer = yield query
    if not isinstance(query, NoisyLogits) and query.surrogate is None:
        record.note(query.x, answer.logits, files=isinstance(query, FileLogits))
    return answer
