"""What a worker needs to know of its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from touchstone.models.measurements import Probe


class WatchedEngine(Protocol):
    """What the keeper needs to know of an engine."""

    @property
    def steps(self) -> int:
        """The number of passes it has finished."""

    @property
    def busy(self) -> bool:
        """Whether it has work."""

    def is_stepping(self, task: object) -> bool:
        """Whether it is at work on this task."""

    def metrics(self) -> dict[str, Any]:
        """Its metrics."""

    def probes(self) -> Mapping[str, Probe]:
        """The probe of the last load of each model, by the model's digest."""


class StoppableEngine(WatchedEngine, Protocol):
    """An engine whose thread can be stopped."""

    def stop(self) -> None:
        """Stop; running tasks raise WorkerStopping."""
