"""Dispatching jobs again whose message was lost, and taking jobs from workers that fell silent."""

from __future__ import annotations

from collections.abc import Callable

from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger
from touchstone.periodic import PeriodicThread

INTERVAL_SECONDS = 1.0

_log = get_logger("reaper")


class Reaper(PeriodicThread):
    """Reaps once a second; any number of processes may run one.

    It has a thread of its own because dispatching blocks while the broker cannot be reached.
    """

    def __init__(self, ledger: Ledger, dispatch: Callable[[str], object]) -> None:
        super().__init__("reaper", self._reap, INTERVAL_SECONDS)
        self._ledger = ledger
        self._dispatch = dispatch

    def _reap(self) -> None:
        reaped = self._ledger.reap()
        if reaped.lost:
            _log.warning("jobs taken from silent workers", jobs=reaped.lost)
        for job in reaped.to_dispatch:
            self._dispatch(job)
