"""The loops of all tasks of a batcher: their rows, joined by kind, and one step of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from touchstone.engine.loops import OpenRows
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.queries import Answer, Query, Repeat
from touchstone.engine.scheduler.pass_queue import Share
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.errors import Failure
from touchstone.models.random_streams import keyed_rows

REPORT_SECONDS = 0.2
"""How often the tasks hear of the steps of their rows."""

Report = tuple[Task, Repeat[Any], Answer, QueryCount]
"""A task, its loop, the last answer about its rows, and the queries so far."""


class LoopRows:
    """Runs the loops that tasks have asked for: rows of one kind share their steps, whosever they are."""

    def __init__(self, observe: Callable[[QueryCount, float], None]) -> None:
        self._observe = observe
        self._rows: dict[Hashable, OpenRows[Any]] = {}
        self._next_report: dict[Hashable, float] = {}
        self._passes = 0.0  # processor time of the passes of a step
        self.worked = 0.0
        """Seconds of processor time that the last step took besides its passes."""

    def join(self, task: Task, question: Repeat[Any]) -> None:
        """Take in the rows of a task's loop."""
        self._rows.setdefault(task.group, OpenRows()).join(task, question)

    def leave(self, task: Task, question: Repeat[Any]) -> None:
        """Give a task's rows back as they are, and count what they have asked."""
        if task.group in self._rows:
            self._rows[task.group].leave(question)
            self.release(task.group)
        forward, backward = _count(question)
        task.queries.forward += forward
        task.queries.backward += backward

    def clear(self) -> None:
        """Forget all rows: their tasks have ended."""
        self._rows.clear()
        self._next_report.clear()

    def step(self, chosen: Share) -> Callable[[], list[Task]]:
        """Run one step of so many rows of each task; returns what puts its results in, and names the tasks
        whose loop has ended with it. Until then nothing has changed.
        """
        oracle, group = chosen[0][0].current_oracle, chosen[0][0].group
        rows, capacity = self._rows[group], sum(count for _, count in chosen)
        began, self._passes = time.thread_time(), 0.0
        choice = rows.choose(chosen)
        step = rows.step(choice)
        try:
            query, number = next(step), 0
            while True:
                if not isinstance(query, Query):
                    raise TypeError("a step of a loop asks about images")
                keys = choice.taken.keys(query, number)
                with keyed_rows((*task.noise_key, task.number, *key) for task, key in keys):
                    answer = self._answer(oracle, query, capacity)
                query, number = step.send(answer), number + 1
        except StopIteration as end:
            self.worked = time.thread_time() - began - self._passes
            return partial(rows.commit, end.value)

    def reports(self, group: Hashable, ended: Sequence[Task]) -> Iterator[Report]:
        """What tasks must hear of the last step: all of them now and then, and each at its end."""
        now, rows = time.monotonic(), self._rows[group]
        everybody = now >= self._next_report.get(group, 0.0)
        if everybody:
            self._next_report[group] = now + REPORT_SECONDS
        counts = rows.counts() if len(rows) else {}
        for task, answer in rows.last_answers() if everybody or ended else ():
            if (everybody or task in ended) and isinstance(task.query, Repeat):
                settled, open_ = _count(task.query), counts.get(task, (0, 0))
                so_far = replace(task.queries)
                so_far.forward += settled[0] + open_[0]
                so_far.backward += settled[1] + open_[1]
                yield task, task.query, answer, so_far

    def release(self, group: Hashable) -> None:
        """Forget a kind of loops that no task runs any more."""
        if group in self._rows and not len(self._rows[group]):
            del self._rows[group]
            self._next_report.pop(group, None)

    def _answer(self, oracle: Oracle, query: Query, capacity: int) -> Answer:
        answers = []
        for start in range(0, len(query), capacity):
            part = query if len(query) <= capacity else query[start : start + capacity]
            began, worked = time.perf_counter(), time.thread_time()
            [answer] = oracle.answer([part])
            self._passes += time.thread_time() - worked
            if isinstance(answer, Failure):
                raise answer
            self._observe(
                QueryCount(len(part), len(part) * part.backward_passes), time.perf_counter() - began
            )
            answers.append(answer)
        return Answer.cat(answers)


def _count(question: Repeat[Any]) -> tuple[int, int]:
    """Forward and backward passes of the rows of a loop that are done or were interrupted."""
    return int(question.tally.forward.values.sum()), int(question.tally.backward.values.sum())
