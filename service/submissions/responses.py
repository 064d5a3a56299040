"""Responses about a job: the job, its image, or its problem."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request, Response

from service import downloads, problems, schemas
from service.headers import APPLIED, SubmissionHeaders
from service.state.backend import TenantBackend
from touchstone.ledger.records import TERMINAL, Job
from touchstone.ledger.replies import JobChange

ADVERSARIAL = "adversarial.png"
_POLL_SECONDS = 1


def is_over(job: Job | JobChange) -> bool:
    """Whether the job has reached a status that never changes."""
    return job.status in TERMINAL


def job_response(
    job: Job,
    *,
    status: int = 200,
    waited: bool = False,
    location: bool = False,
    ahead: int | None = None,
) -> Response:
    """The job as JSON."""
    headers = _cache_headers(job)
    if location:
        headers["Location"] = schemas.path(job.id)
    if status == 202:
        headers["Retry-After"] = str(_POLL_SECONDS)
    if waited:
        headers |= APPLIED
    return Response(schemas.show(job, ahead=ahead).model_dump_json(), status, headers, "application/json")


def not_modified(job: Job) -> Response:
    """304 with the headers of the full response: the client has the current version."""
    return Response(status_code=304, headers=_cache_headers(job))


def _cache_headers(job: Job) -> dict[str, str]:
    return {"ETag": schemas.etag(job), "Cache-Control": "no-cache", "Vary": "Accept, Prefer"}


async def submission_response(
    request: Request, backend: TenantBackend, preferences: SubmissionHeaders, job: Job
) -> Response:
    """The response to a submission: the job, or the image of a finished attack if the client prefers it."""
    waited = preferences.wait_seconds is not None
    if not (waited and is_over(job)):
        return job_response(job, status=202, waited=waited, location=True)
    if preferences.wants_png and job.submission.kind == "attack":
        return await _image_response(request, backend, job)
    return job_response(job, waited=True, location=True)


async def _image_response(request: Request, backend: TenantBackend, job: Job) -> Response:
    """The adversarial image itself, or the problem of the job that did not make one."""
    if job.status != "succeeded":
        return problem_response(request, job, {**_link_headers(job), **APPLIED})
    response = await downloads.build_file_response(backend, job, ADVERSARIAL)
    response.headers.update({**APPLIED, **_link_headers(job), "Location": schemas.path(job.id)})
    response.headers["Vary"] = "Accept, Prefer"
    return response


def problem_response(request: Request, job: Job, headers: Mapping[str, str]) -> Response:
    """The problem of a job that did not succeed."""
    code = job.error.code if job.error else job.status
    detail = job.error.detail if job.error else f"the job was {job.status}"
    extra = {**(job.error.extra if job.error else {}), "job": schemas.path(job.id)}
    return problems.build_response(
        request, problems.status_of(code), code, detail, extra=extra, headers=headers
    )


def _link_headers(job: Job) -> dict[str, str]:
    return {"Link": f'<{schemas.path(job.id)}>; rel="describedby"'}
