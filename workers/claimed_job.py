"""A job that this worker holds, between the thread that runs it and the keeper that speaks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Literal, Protocol

from touchstone.ledger.ledger import Report
from touchstone.ledger.records import Job, Progress

Reason = Literal["canceled", "overdue", "lost", "stopping"]


class Cancelable(Protocol):
    """A task on the engine that can be asked to end."""

    def cancel(self) -> None:
        """Ask for the end before the next step."""

    def expire(self) -> None:
        """The same, because the deadline has passed."""


class Held:
    """One claim of one job: its tasks on the engine, why it should end early, and how far it is."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reason: Reason | None = None
        self._told = float("inf")
        self._tasks: list[Cancelable] = []
        self._report: Report | None = None
        self._lock = threading.Lock()

    def started(self, task: Cancelable) -> None:
        """Note a task of the job; one that starts after the job was told to end is canceled at once."""
        with self._lock:
            self._tasks.append(task)
            reason = self.reason
        if reason:
            _end(task, reason)

    def end(self, reason: Reason) -> None:
        """Ask the job to end; the first reason stays."""
        with self._lock:
            self._told = min(self._told, time.monotonic())
            first = self.reason = self.reason or reason
            tasks = tuple(self._tasks)
        for task in tasks:
            _end(task, first)

    def lingers(self, patience: float) -> bool:
        """Whether it was asked to end longer ago than so many seconds."""
        return time.monotonic() - self._told > patience

    def report(self, progress: Progress, metric: Mapping[str, float]) -> None:
        """Note how far the job is; only the latest note is passed on, so this costs nothing."""
        with self._lock:
            self._report = (self.job.id, self.job.claims, progress, metric)

    def take_report(self) -> Report | None:
        """The latest note that was not taken yet."""
        with self._lock:
            report, self._report = self._report, None
        return report


def _end(task: Cancelable, reason: Reason) -> None:
    if reason == "overdue":
        task.expire()
    else:
        task.cancel()
