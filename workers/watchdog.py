"""Ends a process whose threads no longer run.

Code that never releases the interpreter lock stops every thread of the process, the lease keeper included.
The timer of the interpreter's fault handler runs outside of that lock.
"""

from __future__ import annotations

import faulthandler
import time

FEED_SECONDS = 1.0
GRACE_SECONDS = 4.0


class Watchdog:
    """Ends the process with code 1 and a traceback of every thread on standard error, if it is not fed for
    longer than one step of the engine may take.
    """

    def __init__(self, hang: float) -> None:
        self._timeout = hang + GRACE_SECONDS
        self._next = 0.0

    def feed(self) -> None:
        """Restart the timer; cheap if called often."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + FEED_SECONDS
            faulthandler.dump_traceback_later(self._timeout, exit=True)
