"""One thread with a batcher: all queries to one device, or to one remote model, run on it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from touchstone.engine.scheduler.batcher import Batcher
from touchstone.engine.scheduler.metrics import EngineMetrics
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.errors import WorkerStopping

SMALL_SHARE = 64
"""A task that may need less than such a part of the memory for all is a small one."""


class TaskHandle:
    """A task on the engine, as its owner sees it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._future: Future[Any] = Future()
        task.on_done = self._settle

    @property
    def queries(self) -> QueryCount:
        """Queries answered so far."""
        return self._task.queries

    def is_one_of(self, tasks: Collection[Task]) -> bool:
        """Whether this is the handle of one of these tasks."""
        return self._task in tasks

    def cancel(self) -> None:
        """Ask for the task to end before the next step; `result` then raises JobCanceled."""
        self._task.canceled = True

    def expire(self) -> None:
        """Treat the deadline as passed: a task that expires at all ends before the next step."""
        if self._task.expires:
            self._task.deadline = float("-inf")

    def result(self) -> Any:
        """Wait for what the plan returns; raises what ended it."""
        return self._future.result()

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(error)


class DeviceThread:
    """A thread that runs a `Batcher`; `steps` counts its finished passes.

    With `idle_seconds`, the thread ends when there was nothing to do for so many seconds, after a call of
    `on_idle`; the next task starts another. `step_limit` bounds the work of a plan between two passes, in
    seconds of processor time. Tasks wait until what the running ones may need leaves room for them within
    `memory` bytes, which one alone may exceed.
    """

    def __init__(
        self,
        name: str,
        *,
        idle_seconds: float | None = None,
        on_idle: Callable[[], None] = lambda: None,
        step_limit: float = math.inf,
        memory: float = math.inf,
    ) -> None:
        self.steps = 0
        self._name, self._idle_seconds, self._on_idle = name, idle_seconds, on_idle
        self._metrics = EngineMetrics()
        self._batcher = Batcher()
        self._batcher.on_pass = self._metrics.observe
        self._batcher.on_wait = self._while_waiting
        self._batcher.step_limit = step_limit
        self._arrived: deque[Task] = deque()
        self._waiting: list[Task] = []  # for memory, in the order of arrival
        self._memory = memory
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether any task is running or waits to."""
        return bool(self._arrived or self._waiting or len(self._batcher))

    @property
    def stepping(self) -> tuple[Task, ...]:
        """The tasks that it is at work on, or was last."""
        return self._batcher.stepping

    @property
    def alive(self) -> bool:
        """Whether it has a thread at the moment."""
        return self._thread is not None

    def metrics(self) -> dict[str, Any]:
        """Metrics of its passes, as JSON."""
        return self._metrics.snapshot()

    def ensure_running(self) -> None:
        """Start the thread, if it is not there."""
        with self._wake:
            self._start_thread()

    def submit(self, task: Task) -> TaskHandle:
        """Run a task among the others. Raises WorkerStopping after `stop`."""
        handle = TaskHandle(task)
        with self._wake:
            if self._stopping:
                raise WorkerStopping("the worker is shutting down")
            self._arrived.append(task)
            self._start_thread()
            self._wake.notify()
        return handle

    def stop(self) -> None:
        """End the thread; tasks still running fail with WorkerStopping."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        torch.set_flush_denormal(True)
        while self._admit():
            with suppress(Exception):  # tasks that could not be abandoned are served again
                self._step()
            self.steps += 1
        self._on_idle()

    def _step(self) -> None:
        try:
            self._take_arrived()
            self._batcher.step()
        except Exception as error:  # noqa: BLE001 - a fault of the batcher must not leave its tasks waiting
            self._batcher.abandon(error)

    def _admit(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self.busy, self._idle_seconds)
            if self._stopping:
                self._hand_back()
            if self._stopping or not self.busy:
                self._thread = None
                return False
        return True

    def _hand_back(self) -> None:
        for task in (*self._batcher.tasks(), *self._waiting, *self._arrived):
            task.on_done(None, WorkerStopping("the worker is shutting down"))

    def _take_arrived(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            if self._admits(task):
                self._batcher.add(task)
            else:
                self._waiting.append(task)

    def _admits(self, task: Task) -> bool:
        """Whether a task may start: it is about to end, or there is room for it. Small ones pass large ones
        that wait, large ones do not pass each other.
        """
        used = sum(other.memory for other in self._batcher.tasks())
        if not used or not task.expires or task.canceled or time.monotonic() > task.deadline:
            return True
        behind = self._waiting and task.memory > self._memory / SMALL_SHARE
        return used + task.memory <= self._memory and not behind

    def _while_waiting(self) -> None:
        """While a slow oracle answers, tasks may arrive, and all must end when the worker does."""
        self._take_arrived()
        if self._stopping:
            self._batcher.abandon(WorkerStopping("the worker is shutting down"))
