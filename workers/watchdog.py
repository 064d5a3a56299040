"""Ends a process in which nothing moves any more.

Code that never lets go of the interpreter stops every thread of the process, the keeper's too, so nobody
within could notice. The interpreter's own fault handler waits outside of it.
"""

from __future__ import annotations

import faulthandler
import time

FEED_SECONDS = 1.0
GRACE_SECONDS = 4.0


class Watchdog:
    """Ends the process with code 1, and every thread's traceback on standard error, once it was not fed for
    longer than one step of the engine may take.
    """

    def __init__(self, hang: float) -> None:
        self._timeout = hang + GRACE_SECONDS
        self._next = 0.0

    def feed(self) -> None:
        """Show that the process moves; costs nothing if called often."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + FEED_SECONDS
            faulthandler.dump_traceback_later(self._timeout, exit=True)
