"""Ringing again for jobs whose bell was lost, and taking jobs from workers that fell silent."""

from __future__ import annotations

import threading
from collections.abc import Callable

from touchstone.errors import LedgerUnavailable
from touchstone.jobs.ledger import Ledger
from touchstone.logs import get_logger

PAUSE_SECONDS = 1.0


class Reaper:
    """A thread that reaps once a second; as many processes as like may run one."""

    def __init__(self, ledger: Ledger, ring: Callable[[str], object]) -> None:
        self._ledger = ledger
        self._ring = ring
        self._log = get_logger("reaper")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            try:
                self._reap()
            except LedgerUnavailable as error:
                self._log.warning("not reaped", reason=error.detail)

    def _reap(self) -> None:
        reaped = self._ledger.reap()
        if reaped.lost:
            self._log.warning("jobs taken from silent workers", jobs=reaped.lost)
        for job in reaped.ring:
            self._ring(job)
