"""A job that this worker holds, between the thread that runs it and the keeper that speaks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Literal, Protocol

from touchstone.ledger.ledger import ProgressReport
from touchstone.ledger.records import Job, Progress

StopReason = Literal["canceled", "overdue", "lost", "stopping"]


class Cancelable(Protocol):
    """A task on the engine that can be asked to end."""

    def cancel(self) -> None:
        """Ask for the end before the next step."""

    def expire(self) -> None:
        """The same, because the deadline has passed."""


class ClaimedJob:
    """One claim of one job: its tasks on the engine, why it should end early, and how far it is."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stop_reason: StopReason | None = None
        self._stop_requested_at = float("inf")
        self._tasks: list[Cancelable] = []
        self._report: ProgressReport | None = None
        self._lock = threading.Lock()

    def add_task(self, task: Cancelable) -> None:
        """Note a task of the job; one that starts after the job was told to end is canceled at once."""
        with self._lock:
            self._tasks.append(task)
            reason = self.stop_reason
        if reason:
            _stop_task(task, reason)

    def request_stop(self, reason: StopReason) -> None:
        """Ask the job to end; the first reason stays."""
        with self._lock:
            self._stop_requested_at = min(self._stop_requested_at, time.monotonic())
            first = self.stop_reason = self.stop_reason or reason
            tasks = tuple(self._tasks)
        for task in tasks:
            _stop_task(task, first)

    def is_stuck(self, seconds: float) -> bool:
        """Whether it was asked to end longer ago than so many seconds."""
        return time.monotonic() - self._stop_requested_at > seconds

    def report(self, progress: Progress, metric: Mapping[str, float]) -> None:
        """Note how far the job is; only the latest note is passed on, so this costs nothing."""
        with self._lock:
            self._report = (self.job.id, self.job.claims, progress, metric)

    def take_report(self) -> ProgressReport | None:
        """The latest note that was not taken yet."""
        with self._lock:
            report, self._report = self._report, None
        return report


def _stop_task(task: Cancelable, reason: StopReason) -> None:
    if reason == "overdue":
        task.expire()
    else:
        task.cancel()
