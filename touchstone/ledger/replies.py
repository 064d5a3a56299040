"""What the ledger answers besides jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from touchstone.errors import Failure
from touchstone.ledger.records import LOCAL, Job, Status
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe

ChangeKind = Literal["status", "progress", "metric"]
LeaseVerdict = Literal["fine", "canceled", "overdue", "lost"]
EventType = Literal["status", "progress", "metric", "completed"]


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first, and where the next page starts; no cursor means that there are no more."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `id` is its place in the job's stream and its SSE `Last-Event-ID`."""

    id: str
    type: EventType
    data: dict[str, Any]


@dataclass(frozen=True)
class JobChange:
    """How a job stands after a change: as much of it as everybody is told."""

    id: str
    status: Status | Literal["deleted"]
    version: int
    kind: ChangeKind = "status"
    tenant: str = LOCAL


@dataclass(frozen=True)
class Cancellation:
    """How a job stands that was to be canceled, if there is one, and why it was refused where it was."""

    id: str
    status: Status | None
    refusal: Failure | None = None


@dataclass(frozen=True)
class ReapResult:
    """Jobs whose bell must be rung, and jobs that were taken from a worker that fell silent."""

    to_dispatch: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class QueueState:
    """How many jobs wait, and how many seconds the oldest of them has waited."""

    depth: int
    age: float


@dataclass(frozen=True)
class WorkerHeartbeat:
    """A worker that is alive, with the figures it gave at its last sign of life."""

    id: str
    info: Mapping[str, Any]
    seen_at: datetime


@dataclass(frozen=True)
class VersionRef:
    """A registered version by name; one that was deleted and came again is another."""

    id: str
    digest: str
    registered_at: datetime


@dataclass(frozen=True)
class ModelVersion:
    """A registered version: its card, and what was found out about it before."""

    ref: VersionRef
    manifest: Manifest
    probe: RegistrationProbe


@dataclass(frozen=True)
class PooledCounts:
    """What is counted so far for equal questions, and the seed that all draw from."""

    seed: int
    counts: dict[str, Any] | None
