"""Repeated background work that continues after errors."""

from __future__ import annotations

import threading
from collections.abc import Callable

from touchstone.logs import get_logger

MAX_STOP_SECONDS = 1.0


class PeriodicThread:
    """A thread that calls `action` repeatedly, after a pause each time; an error ends only that call."""

    def __init__(self, name: str, action: Callable[[], object], pause: float) -> None:
        self._action = action
        self._pause = pause
        self._log = get_logger(name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start; the first call follows after a pause."""
        self._thread.start()

    def stop(self) -> None:
        """Start no further call; one that blocks is not waited for long."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(MAX_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                self._action()
            except Exception as error:  # noqa: BLE001 - any error of ledger, broker or disk
                self._log.warning("a round failed", reason=f"{type(error).__name__}: {error}")
