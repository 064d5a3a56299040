"""Dependencies of routes: the backend of the caller's tenant, and the job that a path names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import Depends, Path, Request

from service.auth.caller import caller_of
from service.state.backend import AllTenants, TenantBackend
from touchstone.errors import UnknownJob
from touchstone.ledger.records import Job
from touchstone.ledger.tenant_ledger import TenantLedger

_ID = re.compile(r"[0-9a-z_-]{26,32}")


async def get_tenant_backend(request: Request, backend: AllTenants) -> TenantBackend:
    """The backend for the caller's tenant, made once per request after the check of its scope."""
    tenant = caller_of(request).tenant
    parts: dict[str, Any] = {
        "ledger": TenantLedger.of(backend.ledger, tenant),
        "models": backend.models.of(tenant),
    }
    return cast(TenantBackend, replace(backend, **parts))


Tenant = Annotated[TenantBackend, Depends(get_tenant_backend)]


async def job_id(
    job: Annotated[
        str,
        Path(
            description="A job's id.",
            examples=["0b5f6d0c7a1e4a2f9d3c8b7e6f5a4d3c"],
            json_schema_extra={"pattern": f"^{_ID.pattern}$"},
        ),
    ],
) -> str:
    """The id in the path, checked for its form."""
    if not _ID.fullmatch(job):
        raise UnknownJob.for_id(job)
    return job


JobId = Annotated[str, Depends(job_id)]


def read_job(backend: Tenant, job: JobId) -> Job:
    """The job in the path; a plain function, so that FastAPI reads the ledger in a thread."""
    return backend.ledger.read(job)


KnownJob = Annotated[Job, Depends(read_job)]
