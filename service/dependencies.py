"""The job that a path names, as a dependency of its routes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import Depends, Path, Request

from service.auth.caller import caller_of
from service.state.backend import Backend, TenantBackend
from touchstone.errors import UnknownJob
from touchstone.ledger.records import Job
from touchstone.ledger.tenant_ledger import TenantLedger

_ID = re.compile(r"[0-9a-z_-]{26,32}")


def get_backend(request: Request) -> Backend:
    """The backend for all tenants, for routes that show nothing of any."""
    return cast(Backend, request.app.state.backend)


def get_tenant_backend(request: Request) -> TenantBackend:
    """The backend for the tenant whose caller sent this request."""
    backend, tenant = get_backend(request), caller_of(request).tenant
    parts: dict[str, Any] = {
        "ledger": TenantLedger.of(backend.ledger, tenant),
        "models": backend.models.of(tenant),
    }
    return cast(TenantBackend, replace(backend, **parts))


def job_id(
    job: Annotated[
        str,
        Path(
            description="A job's id.",
            examples=["0b5f6d0c7a1e4a2f9d3c8b7e6f5a4d3c"],
            json_schema_extra={"pattern": f"^{_ID.pattern}$"},
        ),
    ],
) -> str:
    """The id in the path, once it has the form of one."""
    if not _ID.fullmatch(job):
        raise UnknownJob.for_id(job)
    return job


JobId = Annotated[str, Depends(job_id)]


def read_job(request: Request, job: JobId) -> Job:
    """The job in the path; runs in a thread, for it asks the ledger."""
    return get_tenant_backend(request).ledger.read(job)


KnownJob = Annotated[Job, Depends(read_job)]
