"""A worker's process of suspects: started when any wait, and watched, since its death tells who caused it."""

from __future__ import annotations

import subprocess
import time

from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger
from touchstone.periodic import PeriodicThread
from touchstone.settings import Settings, to_environment
from touchstone.supervisor.child import close_input, start_child, stop_child

CHECK_SECONDS = 0.5
STOP_SECONDS = 6.0
"""Longer than a worker's own grace."""
MIN_PAUSE, MAX_PAUSE = 0.5, 30.0

_log = get_logger("quarantine")


class QuarantineProcess(PeriodicThread):
    """Starts `python -m MODULE --quarantine NAME` when suspects wait, or a worker has fallen silent, and no
    other worker of this host has such a process; tells the ledger when it died.

    It ends when this process does, and then gives its jobs back: whatever ended this process was none of
    theirs.
    """

    def __init__(self, worker: str, ledger: Ledger, settings: Settings, module: str) -> None:
        super().__init__("quarantine", self.check, CHECK_SECONDS)
        self._worker = worker
        self._ledger = ledger
        self._module = module
        self._environment = to_environment(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._pause = MIN_PAUSE
        self._not_before = 0.0

    @property
    def name(self) -> str:
        """The worker's name of the present process, or of the last one."""
        return f"{self._worker}-quarantine-{self._starts}"

    def check(self) -> None:
        """Report a process that has ended, and start one if any suspects wait. Raises LedgerUnavailable; what
        could not be reported is reported at the next call.
        """
        if self._process is not None:
            if (code := self._process.poll()) is None:
                self._ledger.losses.may_quarantine(self._worker)
                return
            self._report_end(code)
            close_input(self._process)
            self._process = None
        wanted = time.monotonic() >= self._not_before and self._ledger.losses.are_expected()
        if wanted and self._ledger.losses.may_quarantine(self._worker):
            self._starts += 1
            self._process = start_child([self._module, "--quarantine", self.name], self._environment)

    def _report_end(self, code: int) -> None:
        lost = self._ledger.losses.lose(self.name)
        if code:
            _log.warning("the process of suspects ended", code=code, jobs=lost)
        # One that does not even start would be started again and again.
        self._pause = MIN_PAUSE if lost or code == 0 else min(2 * self._pause, MAX_PAUSE)
        self._not_before = time.monotonic() + (self._pause if code else 0)

    def stop(self) -> None:
        """End the process in order, or by force if that takes too long: its jobs are given back."""
        super().stop()
        if self._process is not None:
            stop_child(self._process, timeout=STOP_SECONDS)
            self._process = None
