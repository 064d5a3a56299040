"""Sending jobs to the workers: the only place where the service does so."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger

STOP_SECONDS = 2.0

MAX_BATCH = 100
"""The most jobs whose messages are sent in one step."""

_log = get_logger("ringer")


def open_dispatch(ledger: Ledger) -> Callable[..., bool]:
    """A function that sends the messages of jobs, and returns whether the ledger took them.

    It blocks while the ledger does not answer, so it belongs on a thread. A message that is lost does no
    harm: the job is in the ledger, and the reaper sends another.
    """

    def dispatch(*jobs: str) -> bool:
        try:
            ledger.dispatch(*jobs)
        except LedgerUnavailable as error:
            _log.warning("bell not rung", jobs=jobs, reason=error.detail)
            return False
        return True

    return dispatch


class Dispatcher:
    """Sends the messages of all jobs that have come meanwhile. A lost message does no harm: the reaper sends
    another.
    """

    def __init__(self, dispatch: Callable[..., object]) -> None:
        self._dispatch = dispatch
        self._jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is still to be sent, unless that takes too long, then end the thread."""
        self._jobs.put(None)
        self._thread.join(STOP_SECONDS)

    def dispatch(self, job: str) -> None:
        """Send a job's message soon; returns at once."""
        self._jobs.put(job)

    def _run(self) -> None:
        while None not in (jobs := self._next_jobs()):
            self._send(jobs)
        self._send(jobs[: jobs.index(None)])

    def _next_jobs(self) -> list[str | None]:
        """Wait for a job; returns it with those that came after it."""
        jobs = [self._jobs.get()]
        with suppress(queue.Empty):
            while jobs[-1] is not None and len(jobs) < MAX_BATCH:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _send(self, jobs: list[str | None]) -> None:
        try:
            if jobs:
                self._dispatch(*jobs)
        except Exception as error:  # noqa: BLE001 - the next messages must be sent all the same
            _log.warning("a bell was lost", jobs=jobs, reason=f"{type(error).__name__}: {error}")
