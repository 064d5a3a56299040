"""Ringing again for jobs whose bell was lost, and taking jobs from workers that fell silent."""

from __future__ import annotations

import threading
from collections.abc import Callable

from touchstone.jobs.ledger import Ledger
from touchstone.logs import get_logger

PAUSE_SECONDS = 1.0

_log = get_logger("reaper")


class Reaper:
    """A thread that reaps once a second; as many processes as like may run one.

    It is a thread of its own because ringing may block for as long as a broker is out of reach.
    """

    def __init__(self, ledger: Ledger, ring: Callable[[str], object]) -> None:
        self._ledger = ledger
        self._ring = ring
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further round; one that waits for a broker is left to itself."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(PAUSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            try:
                self._reap()
            except Exception as error:  # noqa: BLE001 - ledger or broker of whatever kind: tried again soon
                _log.warning("not reaped", reason=f"{type(error).__name__}: {error}")

    def _reap(self) -> None:
        reaped = self._ledger.reap()
        if reaped.lost:
            _log.warning("jobs taken from silent workers", jobs=reaped.lost)
        for job in reaped.ring:
            self._ring(job)
