"""A claimed job, shared by the thread that runs it and the lease keeper."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Literal, Protocol

from touchstone.ledger.ledger import ProgressReport
from touchstone.ledger.records import Job, Progress

StopReason = Literal["canceled", "overdue", "lost", "stopping"]


class Cancelable(Protocol):
    """A task on the engine that can be canceled."""

    def cancel(self) -> None:
        """End before the next step."""

    def expire(self) -> None:
        """The same, because its deadline has passed."""


class ClaimedJob:
    """One claim of one job: its tasks on the engine, the reason to stop early, and its progress."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stop_reason: StopReason | None = None
        self._stop_requested_at = float("inf")
        self._tasks: list[Cancelable] = []
        self._report: ProgressReport | None = None
        self._lock = threading.Lock()

    @property
    def tasks(self) -> tuple[Cancelable, ...]:
        """Its tasks on the engine, ended ones included."""
        with self._lock:
            return tuple(self._tasks)

    def add_task(self, task: Cancelable) -> None:
        """Add a task of the job; one that starts after a stop request is canceled at once."""
        with self._lock:
            self._tasks.append(task)
            reason = self.stop_reason
        if reason:
            _stop_task(task, reason)

    def request_stop(self, reason: StopReason) -> None:
        """Request that the job ends; the first reason stays."""
        with self._lock:
            self._stop_requested_at = min(self._stop_requested_at, time.monotonic())
            first = self.stop_reason = self.stop_reason or reason
            tasks = tuple(self._tasks)
        for task in tasks:
            _stop_task(task, first)

    def is_stuck(self, seconds: float) -> bool:
        """Whether a stop was requested longer ago than so many seconds."""
        return time.monotonic() - self._stop_requested_at > seconds

    def report(self, progress: Progress, metric: Mapping[str, float]) -> None:
        """Record progress; only the latest report is sent, so frequent calls are cheap."""
        with self._lock:
            self._report = (self.job.id, self.job.claims, progress, metric)

    def take_report(self) -> ProgressReport | None:
        """The latest report that was not taken yet."""
        with self._lock:
            report, self._report = self._report, None
        return report


def _stop_task(task: Cancelable, reason: StopReason) -> None:
    if reason == "overdue":
        task.expire()
    else:
        task.cancel()
