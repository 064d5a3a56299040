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
            rows.commit((yield from rows.step(rows.choose())))
    except BaseException:
        rows.leave(question)
        raise
    return rows.last_answer


@dataclass(frozen=True)
class _Seat:
    """Whose a row is, and where it stands among the rows that it came with."""

    owner: Any
    question: Repeat[Any]
    place: int


@dataclass(frozen=True)
class Block(Generic[L]):
    """Rows that stand in one record."""

    loop: L
    tally: Tally
    seats: Sequence[_Seat]
    turns: Sequence[int]  # steps that each row has taken

    def __len__(self) -> int:
        return len(self.seats)

    def select(self, rows: Sequence[int]) -> Block[L]:
        """The block of these rows."""
        if len(rows) == len(self):
            return self
        index = RowIndex(rows)
        seats, turns = [self.seats[row] for row in rows], [self.turns[row] for row in rows]
        return Block(self.loop[index], self.tally[index], seats, turns)

    @classmethod
    def join(cls, blocks: Sequence[Block[L]]) -> Block[L]:
        """The block of all rows of the blocks in order."""
        if len(blocks) == 1:
            return blocks[0]
        return Block(
            type(blocks[0].loop).cat([block.loop for block in blocks]),
            Tally.cat([block.tally for block in blocks]),
            [seat for block in blocks for seat in block.seats],
            [turn for block in blocks for turn in block.turns],
        )

    def keys(self, query: Query, number: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """The owner of each row of a step's query, and what tells the row apart from all others of that
        owner: its place, its step, the query of the step, and which of several copies it is.
        """
        seen: dict[int, int] = {}
        for row in range(len(self)) if query.of_rows is None else query.of_rows.positions:
            seen[row] = seen.get(row, -1) + 1
            yield self.seats[row].owner, (self.seats[row].place, self.turns[row], number, seen[row])

    def settle(self, question: Repeat[Any], rows: Sequence[int], *, done: bool) -> None:
        """Hand these rows of a loop back; they are done, or were interrupted."""
        part = self.select(rows)
        places = RowIndex(seat.place for seat in part.seats)
        question.settle(places, part.loop, part.tally, done=done)


@dataclass(frozen=True)
class Choice(Generic[L]):
    """The rows that the next step takes, and those that it leaves as they are."""

    taken: Block[L]
    others: Sequence[Block[L]]


class OpenRows(Generic[L]):
    """The rows of loops of one kind that are not done, in blocks.

    The rows of a step form a block, and stay one. So where not all rows fit in a pass, and the same rows
    take turns, none are moved; else only those of the pass are.
    """

    def __init__(self) -> None:
        self._blocks: list[Block[L]] = []
        self.last_answer = Answer(torch.empty(0, 0))  # about the rows of the last step
        self._last_owners: list[Any] = []  # whose these rows were

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def join(self, owner: Hashable, question: Repeat[L]) -> None:
        """Take in the rows of a loop that are not done."""
        index = RowIndex.where(question.loop.running)
        seats = [_Seat(owner, question, place) for place in index.positions]
        self._blocks.append(Block(question.loop[index], question.tally[index], seats, [0] * len(index)))

    def leave(self, question: Repeat[L]) -> None:
        """Hand back the rows of a loop as they are."""
        for position, block in enumerate(self._blocks):
            mine = [row for row, seat in enumerate(block.seats) if seat.question is question]
            if mine:
                block.settle(question, mine, done=False)
                self._blocks[position] = block.select(_others(block, mine))
        self._blocks = [block for block in self._blocks if len(block)]

    def choose(self, shares: Sequence[tuple[Hashable, int]] | None = None) -> Choice[L]:
        """For each owner so many of its rows, those first that have waited longest; or all rows."""
        if shares is None or sum(count for _, count in shares) == len(self):
            return Choice(Block.join(self._blocks), [])
        left, chosen = dict(shares), list[list[int]]()
        for block in self._blocks:  # the rows of the last step are in the last block
            own = list[int]()
            for row, seat in enumerate(block.seats):
                if left.get(seat.owner, 0):
                    left[seat.owner] -= 1
                    own.append(row)
            chosen.append(own)
        parts = list(zip(self._blocks, chosen, strict=True))
        rests = [block.select(_others(block, own)) for block, own in parts]
        taken = [block.select(own) for block, own in parts if own]
        return Choice(Block.join(taken), [rest for rest in rests if len(rest)])

    def last_answers(self) -> Iterator[tuple[Any, Answer]]:
        """What each owner was answered in the last step."""
        owned: dict[Hashable, list[int]] = {}
        for position, owner in enumerate(self._last_owners):
            owned.setdefault(owner, []).append(position)
        for owner, positions in owned.items():
            yield owner, self.last_answer[RowIndex(positions)]

    def counts(self) -> dict[Any, tuple[int, int]]:
        """Forward and backward passes that each owner's open rows have taken."""
        counted: dict[Any, tuple[int, int]] = {}
        for block in self._blocks:
            forward, backward = (
                counts.values.tolist() for counts in (block.tally.forward, block.tally.backward)
            )
            for row, seat in enumerate(block.seats):
                before = counted.get(seat.owner, (0, 0))
                counted[seat.owner] = (before[0] + forward[row], before[1] + backward[row])
        return counted

    def step(self, choice: Choice[L]) -> PlanOf[Choice[L]]:
        """One step of the rows taken; returns what `commit` takes. Until then nothing has changed."""
        taken = choice.taken
        plan, tally = taken.loop.step(), taken.tally
        try:
            query = next(plan)
            while True:
                if not isinstance(query, Query):
                    raise TypeError("a step of a loop asks about images")
                answer = yield replace(query, allow_non_finite=True)
                tally = tally.note(answer.logits, answer.grad, query.of_rows)
                if query.of_rows is None:
                    self.last_answer = Answer(answer.logits, answer.loss)
                    self._last_owners = [seat.owner for seat in taken.seats]
                query = plan.send(answer.without_non_finite())
        except StopIteration as end:
            turns = [turn + 1 for turn in taken.turns]
            return Choice(Block(end.value, tally, taken.seats, turns), choice.others)

    def commit(self, stepped: Choice[L]) -> list[Any]:
        """Put in what a step has made of the rows; returns the owners of loops that have ended with it."""
        block = stepped.taken
        done: dict[Repeat[Any], list[int]] = {}
        for row, (seat, runs) in enumerate(zip(block.seats, block.loop.running, strict=True)):
            if not runs:
                done.setdefault(seat.question, []).append(row)
        for question, rows in done.items():
            block.settle(question, rows, done=True)
        going = block.select(_others(block, [row for rows in done.values() for row in rows]))
        self._blocks = [*stepped.others, *([going] if len(going) else [])]
        return [block.seats[rows[0]].owner for question, rows in done.items() if not question.open_rows]


def _others(block: Block[Any], rows: Sequence[int]) -> list[int]:
    """The rows of a block but these."""
    gone = set(rows)
    return [row for row in range(len(block)) if row not in gone]
