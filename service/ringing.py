"""The thread that rings for the workers, so that no request waits for the broker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from touchstone.logs import get_logger

STOP_SECONDS = 2.0

_log = get_logger("ringer")


class Ringer:
    """Rings one bell after the other. A lost bell is no loss: reaping rings again."""

    def __init__(self, ring: Callable[[str], object]) -> None:
        self._ring = ring
        self._jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ring what is still to be rung, unless that takes too long, then end the thread."""
        self._jobs.put(None)
        self._thread.join(STOP_SECONDS)

    def ring(self, job: str) -> None:
        """Have the bell of a job rung soon; returns at once."""
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._ring(job)
            except Exception as error:  # noqa: BLE001 - the next bell is to be rung all the same
                _log.warning("a bell was lost", job=job, reason=f"{type(error).__name__}: {error}")
