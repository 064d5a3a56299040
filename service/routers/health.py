"""Whether the process is alive, and whether it can run jobs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service import problems
from service.openapi import examples
from service.state.backend import AllTenants, Backend, TenantBackend
from touchstone.errors import LedgerUnavailable, NotReady

router = APIRouter(tags=["service"])


@router.get(
    "/healthz",
    operation_id="get_health",
    summary="Whether the process is alive",
    responses={200: examples.content({"status": "alive"})},
)
async def get_health() -> dict[str, str]:
    """Always 200 while the process responds."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Whether jobs can run",
    responses={200: examples.content({"status": "ready", "workers": 1}), **problems.responses()},
)
def get_readiness(backend: AllTenants) -> dict[str, Any]:
    """200 if the ledger answers and a worker is alive; otherwise 503, with what is missing in `missing`."""
    return {"status": "ready", "workers": count_workers(backend)}


def count_workers(backend: Backend | TenantBackend) -> int:
    """How many workers are alive; raises `NotReady` where none is, or where the ledger does not answer."""
    try:
        workers = backend.ledger.workers.alive()
    except LedgerUnavailable as failure:
        raise NotReady("the ledger does not answer", missing=["ledger", "worker"]) from failure
    if not workers:
        raise NotReady("no worker is alive; jobs are accepted, and wait", missing=["worker"])
    return len(workers)
