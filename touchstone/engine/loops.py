"""Loops whose rows advance together, whoever they belong to."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from touchstone.engine.diagnosis import Tally
from touchstone.engine.queries import Answer, PlanOf, Query, Repeat
from touchstone.engine.rows import Loop, RowIndex

L = TypeVar("L", bound=Loop)


def repeat(loop: L) -> PlanOf[L]:
    """The loop at its end; its rows share their steps with those of other plans with loops of its kind."""
    question = Repeat(loop)
    if question.open_rows:
        yield question
    return question.loop


def run_steps(question: Repeat[L]) -> PlanOf[Answer]:
    """Run a loop by itself, with the queries of its steps for all to see; returns the last answer."""
    rows = OpenRows[L]()
    rows.join(question, question)
    try:
        while len(rows):
            everybody = range(len(rows))
            rows.commit(everybody, *(yield from rows.step(everybody)))
    except BaseException:
        rows.leave(question)
        raise
    return rows.last_answer


@dataclass(frozen=True)
class _Seat:
    """Whose a row is, and where it stands among the rows that it came with."""

    owner: Hashable
    question: Repeat[Any]
    place: int


class OpenRows(Generic[L]):
    """The rows of loops of one kind that are not done, joined to one record."""

    def __init__(self) -> None:
        self._loop: L | None = None
        self._tally: Tally | None = None
        self._seats: list[_Seat] = []
        self._turns: list[int] = []  # steps that each row has taken
        self.last_answer = Answer(torch.empty(0, 0))  # about the rows of the last step
        self._last_owners: list[Any] = []  # whose these rows were

    def __len__(self) -> int:
        return len(self._seats)

    def join(self, owner: Hashable, question: Repeat[L]) -> None:
        """Take in the rows of a loop that are not done."""
        index = RowIndex.where(question.loop.running)
        loop, tally = question.loop[index], question.tally[index]
        if self._loop is None or self._tally is None or not self._seats:
            self._loop, self._tally = loop, tally
        else:
            self._loop = type(loop).cat([self._loop, loop])
            self._tally = Tally.cat([self._tally, tally])
        self._seats += [_Seat(owner, question, place) for place in index.positions]
        self._turns += [0] * len(index)

    def leave(self, question: Repeat[L]) -> None:
        """Hand back the rows of a loop as they are."""
        mine = [row for row, seat in enumerate(self._seats) if seat.question is question]
        if mine:
            self._settle(question, mine, done=False)
            self._keep([row for row, seat in enumerate(self._seats) if seat.question is not question])

    def choose(self, shares: Sequence[tuple[Hashable, int]]) -> Sequence[int]:
        """For each owner so many of its rows, those first that have taken the fewest steps."""
        if sum(count for _, count in shares) == len(self._seats):
            return range(len(self._seats))
        rows: dict[Hashable, list[int]] = {}
        for row, seat in enumerate(self._seats):
            rows.setdefault(seat.owner, []).append(row)
        chosen: list[int] = []
        for owner, count in shares:
            own = rows[owner]
            chosen += own if count >= len(own) else sorted(own, key=self._turns.__getitem__)[:count]
        return sorted(chosen)

    def last_answers(self) -> Iterator[tuple[Any, Answer]]:
        """What each owner was answered in the last step."""
        owned: dict[Hashable, list[int]] = {}
        for position, owner in enumerate(self._last_owners):
            owned.setdefault(owner, []).append(position)
        for owner, positions in owned.items():
            yield owner, self.last_answer[RowIndex(positions)]

    def counts(self) -> dict[Any, tuple[int, int]]:
        """Forward and backward passes that each owner's open rows have taken."""
        _, tally = self._record()
        counted: dict[Any, tuple[int, int]] = {}
        passes = zip(tally.forward.values.tolist(), tally.backward.values.tolist(), strict=True)
        for seat, (forward, backward) in zip(self._seats, passes, strict=True):
            before = counted.get(seat.owner, (0, 0))
            counted[seat.owner] = (before[0] + forward, before[1] + backward)
        return counted

    def keys(self, rows: Sequence[int], query: Query, number: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """The owner of each row of a step's query, and what tells the row apart from all others of that
        owner: its place, its step, the query of the step, and which of several copies it is.
        """
        seen: dict[int, int] = {}
        for position in range(len(rows)) if query.of_rows is None else query.of_rows.positions:
            row, copy = rows[position], seen.get(position, 0)
            seen[position] = copy + 1
            yield self._seats[row].owner, (self._seats[row].place, self._turns[row], number, copy)

    def step(self, rows: Sequence[int]) -> PlanOf[tuple[L, Tally]]:
        """One step of these rows; returns what `commit` takes. Until then nothing has changed."""
        loop, tally = self._record()
        index = RowIndex(rows)
        part, counts = (loop, tally) if self._are_all(rows) else (loop[index], tally[index])
        plan = part.step()
        try:
            query = next(plan)
            while True:
                if not isinstance(query, Query):
                    raise TypeError("a step of a loop asks about images")
                answer = yield replace(query, allow_non_finite=True)
                counts = counts.note(answer.logits, answer.grad, query.of_rows)
                if query.of_rows is None:
                    self.last_answer = Answer(answer.logits, answer.loss)
                    self._last_owners = [self._seats[row].owner for row in rows]
                query = plan.send(answer.without_non_finite())
        except StopIteration as end:
            return end.value, counts

    def commit(self, rows: Sequence[int], part: L, counts: Tally) -> list[Any]:
        """Put in what a step has made of these rows; returns the owners of loops that have ended with it."""
        loop, tally = self._record()
        index = RowIndex(rows)
        self._loop = part if self._are_all(rows) else loop.replace_rows(index, part)
        self._tally = counts if self._are_all(rows) else tally.replace_rows(index, counts)
        for row in rows:
            self._turns[row] += 1
        return self._release([row for row, runs in zip(rows, part.running, strict=True) if not runs])

    def _are_all(self, rows: Sequence[int]) -> bool:
        return len(rows) == len(self._seats)

    def _release(self, done: Sequence[int]) -> list[Any]:
        """Hand back the rows that are done; returns the owners who have no others."""
        by_question: dict[Repeat[Any], list[int]] = {}
        for row in done:
            by_question.setdefault(self._seats[row].question, []).append(row)
        ended = []
        for question, rows in by_question.items():
            self._settle(question, rows, done=True)
            if not question.open_rows:
                ended.append(self._seats[rows[0]].owner)
        if by_question:
            gone = {row for rows in by_question.values() for row in rows}
            self._keep([row for row in range(len(self._seats)) if row not in gone])
        return ended

    def _settle(self, question: Repeat[Any], rows: list[int], *, done: bool) -> None:
        loop, tally = self._record()
        index = RowIndex(rows)
        question.settle(
            RowIndex(self._seats[row].place for row in rows), loop[index], tally[index], done=done
        )

    def _keep(self, rows: list[int]) -> None:
        loop, tally = self._record()
        index = RowIndex(rows)
        self._loop, self._tally = loop[index], tally[index]
        self._seats = [self._seats[row] for row in rows]
        self._turns = [self._turns[row] for row in rows]

    def _record(self) -> tuple[L, Tally]:
        if self._loop is None or self._tally is None:
            raise TypeError("there are no rows")
        return self._loop, self._tally
