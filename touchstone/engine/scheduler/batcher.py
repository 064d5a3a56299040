"""Many plans, few passes: the open questions of all running tasks are gathered, answered together and
handed back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch

from touchstone.engine.oracles.oracle import Oracle, StillWanted, check_finite
from touchstone.engine.queries import Answer, Gradient, NoisyLogits, PlanOf, Query
from touchstone.errors import DeadlineExceeded, Failure, JobCanceled, OutOfMemory
from touchstone.memory import is_out_of_memory

LOW_MEMORY_SECONDS = 60.0
"""For so long memory that ran out counts as short: others may have taken it, and given it back."""


@runtime_checkable
class SlowOracle(Protocol):
    """An oracle whose answers are long in coming: meanwhile it hears which of them are still wanted."""

    def answer_while(
        self, queries: Sequence[Query | NoisyLogits], still_wanted: StillWanted
    ) -> Sequence[Answer | Failure]:
        """An answer to each query, or why there is none; anything for those that nobody wants."""


@dataclass
class QueryCount:
    """Queries answered, one for each row."""

    forward: int = 0
    backward: int = 0
    surrogate: int = 0  # answered by other models than the one under attack


@dataclass(eq=False)
class Task:
    """A running plan: the question it waits on, how much of it is answered, and what it may still use."""

    plan: PlanOf[Any]
    oracle: Oracle
    deterministic: bool = False
    deadline: float = float("inf")  # on time.monotonic's clock
    on_answer: Callable[[Query | NoisyLogits, Answer, QueryCount], None] | None = None
    owner: str = ""  # whoever has more tasks gets no more of a pass
    on_done: Callable[[Any, BaseException | None], None] = lambda _result, _error: None
    queries: QueryCount = field(default_factory=QueryCount)
    canceled: bool = False
    ended: bool = False
    query: Query | NoisyLogits | None = None
    parts: list[Answer] = field(default_factory=list)
    answered_rows: int = 0

    @property
    def current_oracle(self) -> Oracle:
        """Whom the open question is for."""
        surrogate: Oracle | None = None if self.query is None else self.query.surrogate
        return self.oracle if surrogate is None else surrogate

    @property
    def group(self) -> Hashable:
        """Tasks of one group can share a pass: one model, gradients or not. A deterministic task is alone,
        and so is each task of a model whose answers depend on the batch.
        """
        kind = (isinstance(self.query, Gradient), 0 if self.query is None else self.query.backward_passes)
        alone = self.deterministic or not self.current_oracle.shared
        return (id(self.current_oracle), kind, id(self) if alone else None)

    @property
    def remaining_rows(self) -> int:
        """Rows of the open question that are not answered yet."""
        return 0 if self.query is None else len(self.query) - self.answered_rows


class Batcher:
    """Runs tasks in slices: each `step` is one pass for one group, shared fairly among its tasks.

    Groups take turns. Within a group each owner gets an equal share of the rows, and of it each of their
    tasks; what one does not need goes to the others, so a question of a hundred thousand rows delays a
    question of one row by one slice. It has no thread and no clock of its own but for deadlines;
    `touchstone.engine.scheduler.device_thread` runs one per device. What `step` raises leaves tasks that only
    `abandon` ends.
    """

    def __init__(self) -> None:
        self._running: dict[Task, None] = {}  # in the order in which they came; each is told of its end once
        self._groups: dict[Hashable, deque[Task]] = {}
        self._limits: WeakKeyDictionary[Oracle, tuple[int, float]] = WeakKeyDictionary()
        """Rows of a pass after running out of memory, and until when."""
        self.on_pass: Callable[[QueryCount, float], None] = lambda _queries, _seconds: None
        self.on_wait: Callable[[], None] = lambda: None  # called while an oracle takes its time

    def __len__(self) -> int:
        return len(self._running)

    def tasks(self) -> list[Task]:
        """All running tasks."""
        return list(self._running)

    def add(self, task: Task) -> None:
        """Start a task: its plan runs up to its first question."""
        self._running[task] = None
        self._advance(task, None)

    def step(self) -> None:
        """Answer one slice of the group whose turn it is."""
        self._drop_overdue()
        if not self._groups:
            return
        key, group = next(iter(self._groups.items()))
        chosen = self._share(group)
        served = {task for task, _ in chosen}
        # Last in line now, the group among the groups and these tasks among its tasks.
        del self._groups[key]
        self._groups[key] = deque(sorted(group, key=served.__contains__))
        self._answer(chosen)

    def abandon(self, error: BaseException) -> None:
        """End all tasks with this error."""
        for task in self.tasks():
            self._end(task, error)

    def _share(self, group: Sequence[Task]) -> list[tuple[Task, Query | NoisyLogits]]:
        """As many rows as one pass takes, spread evenly over owners, and what each gets over its tasks."""
        oracle = group[0].current_oracle
        fixed = group[0].deterministic or any(isinstance(task.query, NoisyLogits) for task in group)
        rows = oracle.fixed_rows if fixed else oracle.rows
        limit, until = self._limits.get(oracle, (rows, 0.0))
        room = min(rows, limit) if time.monotonic() < until else rows
        owners: dict[str, list[Task]] = {}
        for task in group:
            owners.setdefault(task.owner, []).append(task)
        return [
            (task, _slice_query(task, part))
            for tasks, rows in _spread(list(owners.values()), room)
            for [task], part in _spread([[task] for task in tasks], rows)
        ]

    def _answer(self, chosen: list[tuple[Task, Query | NoisyLogits]]) -> None:
        oracle = chosen[0][0].current_oracle
        began = time.perf_counter()
        try:
            answers = self._query_oracle(oracle, chosen)
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to its tasks, not to the engine
            self._recover(chosen, error)
            return
        rows = sum(len(answer) for answer in answers if isinstance(answer, Answer))
        backward = rows * chosen[0][1].backward_passes
        self.on_pass(QueryCount(rows, backward), time.perf_counter() - began)
        for (task, query), answer in zip(chosen, answers, strict=True):
            if isinstance(answer, Failure):
                self._end(task, answer)
            else:
                self._deliver(task, query, answer)

    def _query_oracle(
        self, oracle: Oracle, chosen: Sequence[tuple[Task, Query | NoisyLogits]]
    ) -> Sequence[Answer | Failure]:
        queries = [query for _, query in chosen]
        if not isinstance(oracle, SlowOracle):
            return oracle.answer(queries)
        return oracle.answer_while(queries, lambda: self._find_wanted(chosen))

    def _find_wanted(self, chosen: Sequence[tuple[Task, Query | NoisyLogits]]) -> list[bool]:
        """Whose question is still open: tasks come and go while an oracle takes its time."""
        self.on_wait()
        self._drop_overdue()
        return [not task.ended for task, _ in chosen]

    def _recover(self, chosen: list[tuple[Task, Query | NoisyLogits]], error: Exception) -> None:
        """Out of memory: ask for half as much for a while. Anything else: find out whose question it was."""
        rows = sum(len(query) for _, query in chosen)
        if is_out_of_memory(error) and rows > 1:
            self._limits[chosen[0][0].current_oracle] = (rows // 2, time.monotonic() + LOW_MEMORY_SECONDS)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        elif len(chosen) > 1:
            for pair in chosen:
                self._answer([pair])
        elif is_out_of_memory(error):
            self._end(
                chosen[0][0],
                OutOfMemory("the device's memory does not hold even one row of this model"),
            )
        else:
            self._end(chosen[0][0], error)

    def _deliver(self, task: Task, query: Query | NoisyLogits, answer: Answer) -> None:
        if task.ended:
            return
        if query.surrogate is None:
            task.queries.forward += len(query)
            task.queries.backward += len(query) * query.backward_passes
        else:
            task.queries.surrogate += len(query)
        task.answered_rows += len(query)
        task.parts.append(answer)
        if task.remaining_rows:
            return
        whole = Answer.cat(task.parts)
        asked = task.query
        self._leave(task)
        try:
            check_finite(whole)
            if task.on_answer and asked is not None:
                task.on_answer(asked, whole, task.queries)
        except Exception as error:  # noqa: BLE001 - a task's failure is reported to its owner
            self._settle(task, None, error)
            return
        self._advance(task, whole)

    def _advance(self, task: Task, answer: Answer | None) -> None:
        task.parts, task.answered_rows = [], 0
        try:
            with torch.no_grad():
                task.query = next(task.plan) if answer is None else task.plan.send(answer)
        except StopIteration as end:
            task.query = None
            self._settle(task, end.value, None)
        except Exception as error:  # noqa: BLE001 - a plan's failure is reported to its owner
            self._settle(task, None, error)
        else:
            self._groups.setdefault(task.group, deque()).append(task)

    def _drop_overdue(self) -> None:
        now = time.monotonic()
        for task in self.tasks():
            if task.canceled:
                self._end(task, JobCanceled("the job was canceled"))
            elif now > task.deadline:
                self._end(
                    task,
                    DeadlineExceeded("the job's deadline passed before the method came to its end"),
                )

    def _end(self, task: Task, error: BaseException) -> None:
        """End a task; a plan that catches what ends it may still return what it has shown so far."""
        if task.ended:
            return
        task.ended = True
        self._leave(task)
        try:
            task.plan.throw(error)
        except StopIteration as end:
            self._settle(task, end.value, None)
        except BaseException as raised:  # noqa: BLE001 - reported to the task's owner
            self._settle(task, None, raised)
        else:
            task.plan.close()
            self._settle(task, None, error)

    def _settle(self, task: Task, result: Any, error: BaseException | None) -> None:
        del self._running[task]
        task.on_done(result, error)

    def _leave(self, task: Task) -> None:
        group = self._groups.get(task.group)
        if group is not None and task in group:
            group.remove(task)
            if not group:
                del self._groups[task.group]


def _count_remaining(tasks: Sequence[Task]) -> int:
    return sum(task.remaining_rows for task in tasks)


def _spread(groups: Sequence[Sequence[Task]], capacity: int) -> Iterator[tuple[Sequence[Task], int]]:
    """Equal parts of the room for as many as it has rows, none larger than what it is for.

    The small ones come first, so that what they leave of their part goes to the large ones.
    """
    by_size = sorted(groups[:capacity], key=_count_remaining)
    for position, one in enumerate(by_size):
        part = min(_count_remaining(one), max(1, capacity // (len(by_size) - position)))
        capacity -= part
        yield one, part


def _slice_query(task: Task, rows: int) -> Query | NoisyLogits:
    if task.query is None:
        raise TypeError("a task without a question has no part to take")
    if task.answered_rows == 0 and rows == len(task.query):
        return task.query
    return task.query[task.answered_rows : task.answered_rows + rows]
