"""The job that a path names, as a dependency of its routes."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Path, Request

from service.state.backend import backend_of
from touchstone.errors import UnknownJob
from touchstone.ledger.records import Job

_ID = re.compile(r"[0-9a-z_-]{26,32}")


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
