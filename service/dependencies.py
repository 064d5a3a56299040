"""The job that a path names, as a dependency of its routes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import Depends, Path, Request

from service.auth.caller import caller_of
from service.state.backend import Backend, Whole
from touchstone.errors import UnknownJob
from touchstone.ledger.records import Job
from touchstone.ledger.tenant_ledger import Holdings

_ID = re.compile(r"[0-9a-z_-]{26,32}")


def whole_of(request: Request) -> Whole:
    """The backend for all tenants, for routes that show nothing of any."""
    return cast(Whole, request.app.state.backend)


def backend_of(request: Request) -> Backend:
    """The backend for the tenant whose caller sent this request."""
    whole, tenant = whole_of(request), caller_of(request).tenant
    parts: dict[str, Any] = {"ledger": Holdings.of(whole.ledger, tenant), "models": whole.models.of(tenant)}
    return cast(Backend, replace(whole, **parts))


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
        raise UnknownJob.named(job)
    return job


JobId = Annotated[str, Depends(job_id)]


def known_job(request: Request, job: JobId) -> Job:
    """The job in the path; runs in a thread, for it asks the ledger."""
    return backend_of(request).ledger.read(job)


KnownJob = Annotated[Job, Depends(known_job)]
