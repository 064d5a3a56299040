"""Records that the ledger returns besides jobs."""

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
    """An event of a job; `id` is its position in the job's stream and its SSE `Last-Event-ID`."""

    id: str
    type: EventType
    data: dict[str, Any]


@dataclass(frozen=True)
class JobChange:
    """A job after a change: as much of it as every subscriber receives."""

    id: str
    status: Status | Literal["deleted"]
    version: int
    kind: ChangeKind = "status"
    tenant: str = LOCAL


@dataclass(frozen=True)
class Cancellation:
    """The status of a job that was to be canceled, None where there is no such job, and why it was refused if
    it was.
    """

    id: str
    status: Status | None
    refusal: Failure | None = None


@dataclass(frozen=True)
class ReapResult:
    """Jobs to dispatch again, and jobs that were taken from a worker that fell silent."""

    to_dispatch: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class QueueState:
    """How many jobs wait, and how many seconds the oldest of them has waited."""

    depth: int
    age: float


@dataclass(frozen=True)
class WorkerHeartbeat:
    """A worker that is alive, with the figures of its last heartbeat."""

    id: str
    info: Mapping[str, Any]
    seen_at: datetime


@dataclass(frozen=True)
class VersionRef:
    """A registered version by id; one that was deleted and registered again is another."""

    id: str
    digest: str
    registered_at: datetime


@dataclass(frozen=True)
class ModelVersion:
    """A registered version: its manifest, and what its registration measured."""

    ref: VersionRef
    manifest: Manifest
    probe: RegistrationProbe
    size: int
    """Bytes of both as JSON."""


@dataclass(frozen=True)
class PooledCounts:
    """Counts so far of certificates with equal questions, and the seed that all of them draw from."""

    seed: int
    counts: dict[str, Any] | None
