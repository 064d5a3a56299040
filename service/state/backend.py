"""What the routes use: the ledger, the blobs, the dispatcher, the waiters and the other parts of the process.

There is one of each for all tenants. Most routes get the view of one tenant: `service.dependencies.Tenant`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeAlias, TypeVar, cast

from fastapi import Depends, Request

from service.state.dispatch import Dispatcher
from service.state.failed_keys import FailedKeys
from service.state.job_waiters import JobWaiters
from service.state.open_requests import OpenRequests
from service.state.pending_uploads import PendingUploads
from service.state.tenant_threads import TenantThreads
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.reaper import Reaper
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks.dispatcher import WebhookDispatcher
from touchstone.models.store import ModelStore
from touchstone.sandbox.decoder_pool import DecoderPool
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs
from touchstone.storage.garbage_collector import GarbageCollector

if TYPE_CHECKING:
    from service.state.metrics import RequestMetrics

Dispatch = Callable[..., object]
"""Sends the ids of jobs to the workers; it may fail, because the jobs are in the ledger already."""

L = TypeVar("L", Ledger, TenantLedger)


@dataclass(frozen=True)
class _BackendOf(Generic[L]):
    settings: Settings
    ledger: L
    blobs: Blobs
    models: ModelStore
    dispatcher: Dispatcher
    waiters: JobWaiters
    reaper: Reaper
    deliverer: WebhookDispatcher
    sweeper: GarbageCollector
    request_metrics: RequestMetrics
    check_threads: TenantThreads
    submit_threads: TenantThreads
    dns_threads: TenantThreads
    pending_uploads: PendingUploads
    failed_keys: FailedKeys
    open_requests: OpenRequests
    decoders: DecoderPool


Backend: TypeAlias = _BackendOf[Ledger]
"""Everything, for the life of the application and for all tenants."""

TenantBackend: TypeAlias = _BackendOf[TenantLedger]
"""The same for one tenant: neither the ledger nor the models show what is another's."""


async def get_backend(request: Request) -> Backend:
    """The backend for all tenants."""
    return cast(Backend, request.app.state.backend)


AllTenants = Annotated[Backend, Depends(get_backend)]
"""For routes that show nothing of any tenant, and for the operator's."""


def check_concurrency(processes: int = 1) -> int:
    """How many bodies are checked and images decoded at once, which limits their memory, by each of some API
    processes.
    """
    return max(2, (os.cpu_count() or 1) // processes)


MAX_SUBMISSIONS = 32
"""Small submissions that are checked and accepted at once; each waits for a decoder, the disk, the ledger."""

MAX_DNS_LOOKUPS = 16
"""Host names that are resolved at once: an authority may answer as slowly as it likes."""
