"""What the routes stand on: the ledger, the blobs, the bell, and those who wait.

There is one of each for all tenants. A route gets it as far as its caller's tenant may see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from anyio import CapacityLimiter

from service.state.dispatch import Ringer
from service.state.failed_keys import Strangers
from service.state.job_waiters import Waiting
from service.state.pending_uploads import Arrivals
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.reaper import Reaper
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.ledger.webhooks.dispatcher import Deliverer
from touchstone.models.store import Shelf
from touchstone.sandbox.decoder_pool import Decoders
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from touchstone.storage.garbage_collector import Sweeper

if TYPE_CHECKING:
    from service.state.metrics import Durations

Ring = Callable[[str], object]
"""Tells the workers of a job, given its id; it may fail, because the ledger already holds the job."""

L = TypeVar("L", Ledger, Holdings)


@dataclass(frozen=True)
class _Backend(Generic[L]):
    settings: Settings
    ledger: L
    blobs: Blobs
    models: Shelf
    ringer: Ringer
    waiting: Waiting
    reaper: Reaper
    deliverer: Deliverer
    sweeper: Sweeper
    durations: Durations
    checks: CapacityLimiter
    names: CapacityLimiter
    arrivals: Arrivals
    strangers: Strangers
    decoders: Decoders


Whole: TypeAlias = _Backend[Ledger]
"""Everything, for the life of the application."""

Backend: TypeAlias = _Backend[Holdings]
"""The same for one tenant: neither the ledger nor the models show what is another's."""


def at_once() -> int:
    """How many bodies are checked and images decoded at once: it bounds the memory that they take."""
    return max(2, os.cpu_count() or 1)


NAMES = 16
"""Names that are resolved at once, for as long as whoever answers for them likes to take."""
