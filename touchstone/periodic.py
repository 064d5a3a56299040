"""What a process does again and again in the background, whatever goes wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from touchstone.logs import get_logger

MAX_STOP_SECONDS = 1.0


class PeriodicThread:
    """A thread that does something again and again, with a pause before; what failed is tried again."""

    def __init__(self, name: str, action: Callable[[], object], pause: float) -> None:
        self._action = action
        self._pause = pause
        self._log = get_logger(name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, with a pause."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further round; one that waits for somebody is left to itself."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(MAX_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                self._action()
            except Exception as error:  # noqa: BLE001 - ledger, broker or disk of whatever kind
                self._log.warning("a round failed", reason=f"{type(error).__name__}: {error}")
