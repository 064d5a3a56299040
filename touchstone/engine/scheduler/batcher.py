"""Runs many plans in few passes: the open queries of all running tasks are answered together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch

from touchstone.engine.oracles.oracle import Oracle, StillWanted, check_finite
from touchstone.engine.plans import expand_loops
from touchstone.engine.queries import Answer, AnyQuery, NoisyLogits, Query, Repeat
from touchstone.engine.scheduler.loop_rows import LoopRows
from touchstone.engine.scheduler.pass_queue import PassQueue, Share
from touchstone.engine.scheduler.step_limit import time_exceeded
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.errors import DeadlineExceeded, Failure, JobCanceled, OutOfMemory
from touchstone.memory import is_out_of_memory
from touchstone.models.random_streams import keyed_rows


@runtime_checkable
class SlowOracle(Protocol):
    """An oracle whose answers take long: meanwhile it asks which of them are still wanted."""

    def answer_while(
        self, queries: Sequence[Query | NoisyLogits], still_wanted: StillWanted
    ) -> Sequence[Answer | Failure]:
        """An answer to each query, or the failure that prevented it; anything where it is not wanted."""


class Batcher:
    """Runs tasks from their first query to their end; each `step` is one pass for one group of them.

    A `PassQueue` chooses the rows of each pass. The batcher has no thread, and no clock but for deadlines;
    `touchstone.engine.scheduler.device_thread` runs one per device. After `step` has raised, only `abandon`
    is certain to end the tasks.
    """

    def __init__(self) -> None:
        self._running: dict[Task, None] = {}  # in the order of arrival; `on_done` is called once for each
        self._queue = PassQueue()
        self._loops = LoopRows(self._observe)
        self.on_pass: Callable[[QueryCount, float], None] = lambda _queries, _seconds: None
        self.on_wait: Callable[[], None] = lambda: None  # called while a slow oracle answers
        self.stepping: tuple[Task, ...] = ()
        """The tasks that it is at work on, or was last."""
        self.step_limit = math.inf  # seconds of processor time that a plan may take between two passes

    def __len__(self) -> int:
        return len(self._running)

    def tasks(self) -> list[Task]:
        """All running tasks."""
        return list(self._running)

    def add(self, task: Task) -> None:
        """Start a task: its plan runs up to its first query."""
        self._running[task] = None
        if isinstance(task.oracle, SlowOracle):  # a step of a loop would not let others come and go meanwhile
            task.plan = expand_loops(task.plan)
        self._advance(task, None)

    def step(self) -> None:
        """Run one pass, for the group whose turn it is."""
        self._drop_overdue()
        if self._queue:
            self._answer(self._queue.next_pass())

    def abandon(self, error: BaseException) -> None:
        """End all tasks with this error."""
        for task in self.tasks():
            self._end(task, error)
        self._loops.clear()

    def _answer(self, chosen: Share) -> None:
        """Run a pass of these rows or, where they are loops, a step."""
        run = self._step_loops if isinstance(chosen[0][0].query, Repeat) else self._run_pass
        self.stepping = tuple(task for task, _ in chosen)
        began = time.perf_counter()
        try:
            deliver = run(chosen)
        except Exception as error:  # noqa: BLE001 - what the model raises is its tasks' failure, not the engine's
            deliver = partial(self._recover, chosen, error)
        self._queue.charge_pass(chosen, time.perf_counter() - began)
        deliver()

    def _observe(self, queries: QueryCount, seconds: float) -> None:
        self.on_pass(queries, seconds)

    def _run_pass(self, chosen: Share) -> Callable[[], None]:
        sliced = [(task, task.slice_query(rows)) for task, rows in chosen]
        began = time.perf_counter()
        answers = self._query_oracle(chosen[0][0].current_oracle, sliced)
        rows = sum(len(answer) for answer in answers if isinstance(answer, Answer))
        backward = rows * sliced[0][1].backward_passes
        self.on_pass(QueryCount(rows, backward), time.perf_counter() - began)
        return partial(self._deliver_all, sliced, answers)

    def _deliver_all(
        self, sliced: Sequence[tuple[Task, Query | NoisyLogits]], answers: Sequence[Answer | Failure]
    ) -> None:
        for (task, query), answer in zip(sliced, answers, strict=True):
            if isinstance(answer, Failure):
                self._end(task, answer)
            else:
                self._deliver(task, query, answer)

    def _step_loops(self, chosen: Share) -> Callable[[], None]:
        with torch.no_grad():
            return partial(self._deliver_step, chosen, self._loops.step(chosen), self._loops.worked)

    def _deliver_step(self, chosen: Share, commit: Callable[[], list[Task]], worked: float) -> None:
        group, ended = chosen[0][0].group, commit()
        for task, question, answer, counts in list(self._loops.reports(group, ended)):
            self._report(task, question, answer, counts)
        self._loops.release(group)
        for task in ended:
            if not task.ended and isinstance(task.query, Repeat):
                self._queue.remove(task)
                self._loops.leave(task, task.query)
                self._advance(task, Answer(torch.empty(0, 0)))
        if worked > self.step_limit and not ended:
            self._stop_slow_loop(chosen, worked)

    def _stop_slow_loop(self, chosen: Share, seconds: float) -> None:
        """End the task of a step that took too long; where several shared it, find it by smaller steps."""
        if len(chosen) == 1:
            self._end(chosen[0][0], time_exceeded(chosen[0][0].number, seconds, self.step_limit))
        else:
            rows = sum(count for _, count in chosen)
            self._queue.limit_rows(chosen[0][0].current_oracle, max(1, rows // 2))

    def _report(self, task: Task, query: AnyQuery, answer: Answer, counts: QueryCount) -> None:
        """Tell the owner of a task of an answer; where that fails, the task does."""
        try:
            if task.on_answer:
                task.on_answer(query, answer, counts)
        except Exception as error:  # noqa: BLE001 - a task's failure is reported to its owner
            self._end(task, error)

    def _query_oracle(
        self, oracle: Oracle, chosen: Sequence[tuple[Task, Query | NoisyLogits]]
    ) -> Sequence[Answer | Failure]:
        queries = [query for _, query in chosen]
        if not isinstance(oracle, SlowOracle):
            with keyed_rows(chain.from_iterable(task.row_keys(len(query)) for task, query in chosen)):
                return oracle.answer(queries)
        return oracle.answer_while(queries, lambda: self._find_wanted(chosen))

    def _find_wanted(self, chosen: Sequence[tuple[Task, Query | NoisyLogits]]) -> list[bool]:
        """Which queries are still open: tasks come and go while a slow oracle answers."""
        self.on_wait()
        self._drop_overdue()
        return [not task.ended for task, _ in chosen]

    def _recover(self, chosen: Share, error: Exception) -> None:
        """Out of memory: run smaller passes for a while. Any other error: find the task that causes it."""
        rows = sum(count for _, count in chosen)
        if is_out_of_memory(error) and rows > 1:
            self._queue.limit_rows(chosen[0][0].current_oracle, rows // 2)
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
        whole, whole_query = Answer.cat(task.parts), task.query
        self._queue.remove(task)
        try:
            if isinstance(whole_query, Query | NoisyLogits):
                check_finite(whole_query, whole)
                if task.on_answer:
                    task.on_answer(whole_query, whole, task.queries)
        except Exception as error:  # noqa: BLE001 - a task's failure is reported to its owner
            self._settle(task, None, error)
            return
        self._advance(task, whole)

    def _advance(self, task: Task, answer: Answer | None) -> None:
        task.parts, task.answered_rows, task.number = [], 0, task.number + 1
        self.stepping = (task,)
        began, worked = time.perf_counter(), time.thread_time()
        try:
            with torch.no_grad():
                task.query = next(task.plan) if answer is None else task.plan.send(answer)
                if isinstance(task.query, Repeat):
                    self._loops.join(task, task.query)
        except StopIteration as end:
            task.query = None
            self._settle(task, end.value, None)
        except Exception as error:  # noqa: BLE001 - a plan's failure is reported to its owner
            self._settle(task, None, _explain(task, error))
        else:
            self._queue.add(task)
            self._queue.charge_plan(task, time.perf_counter() - began)
            seconds = time.thread_time() - worked
            if seconds > self.step_limit:
                self._end(task, time_exceeded(task.number, seconds, self.step_limit))

    def _drop_overdue(self) -> None:
        now = time.monotonic()
        for task in self.tasks():
            if task.canceled:
                self._end(task, JobCanceled("the job was canceled"))
            elif now > task.deadline:
                self._end(
                    task,
                    DeadlineExceeded("the job's deadline passed before the method had finished"),
                )

    def _end(self, task: Task, error: BaseException) -> None:
        """End a task; a plan that catches the error may still return what it has found so far."""
        if task.ended:
            return
        task.ended = True
        self._queue.remove(task)
        try:
            if isinstance(task.query, Repeat):
                self._loops.leave(task, task.query)
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


def _explain(task: Task, error: Exception) -> Exception:
    """What ended a plan; where memory ran out, which step needed it."""
    if isinstance(error, Failure) or not is_out_of_memory(error):
        return error
    failure = OutOfMemory(f"the memory does not hold what step {task.number} of the job computes")
    failure.__cause__ = error
    return failure
