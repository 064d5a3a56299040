"""A process for the next trial of a model, started after one has ended, so that it has PyTorch imported."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from touchstone.registration.trial_child import TrialChild

KEEP_SECONDS = 600.0
"""How long it is kept after a trial: models are often registered one after the other, or not at all."""


@dataclass
class SpareChild:
    """At most one process that waits for a model."""

    keep_seconds: float = KEEP_SECONDS
    _child: TrialChild | None = None
    _timer: threading.Timer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> TrialChild:
        """The one that waits, or else a new one: it now belongs to the caller."""
        child = self._detach()
        if child is None:
            return TrialChild()
        if child.ended:
            child.close()
            return TrialChild()
        return child

    def prepare(self) -> None:
        """Start one, unless there is one; it ends after `keep_seconds`."""
        with self._lock:
            if self._child is None:
                self._child = TrialChild()
                self._timer = threading.Timer(self.keep_seconds, self.stop)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """End the one that waits."""
        if (child := self._detach()) is not None:
            child.close()

    def _detach(self) -> TrialChild | None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            child, self._child, self._timer = self._child, None, None
            return child
