"""What the routes stand on: the ledger, the blobs, the bell, and those who wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from anyio import CapacityLimiter
from fastapi import Request

from service.ringing import Ringer
from service.waiting import Waiting
from touchstone.decoding import Decoders
from touchstone.jobs.blobs import Blobs
from touchstone.jobs.delivering import Deliverer
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.reaping import Reaper
from touchstone.jobs.sweeping import Sweeper
from touchstone.models.shelf import Shelf
from touchstone.settings import Settings

if TYPE_CHECKING:
    from service.metrics import Durations

Ring = Callable[[str], object]
"""Tells the workers of a job, given its id; it may fail, because the ledger already holds the job."""


@dataclass(frozen=True)
class Backend:
    """One of each, for the life of the application."""

    settings: Settings
    ledger: Ledger
    blobs: Blobs
    models: Shelf
    ringer: Ringer
    waiting: Waiting
    reaper: Reaper
    deliverer: Deliverer
    sweeper: Sweeper
    durations: Durations
    checks: CapacityLimiter
    decoders: Decoders


def at_once() -> int:
    """How many bodies are checked and images decoded at once: it bounds the memory that they take."""
    return max(2, os.cpu_count() or 1)


def backend_of(request: Request) -> Backend:
    """The backend of the application that serves this request."""
    return cast(Backend, request.app.state.backend)
