"""Jobs: listing, reading, canceling, running again, deleting."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from service import headers, problems, schemas
from service.auth.permissions import check_still_permitted, permission_check, reader, submitter
from service.dependencies import JobId, KnownJob, Tenant
from service.headers import IfNoneMatch, Preferences, WaitSeconds
from service.openapi import examples, operations
from service.pagination import Cursor, Limit, Moment, Page, link_next
from service.state.backend import TenantBackend
from service.submissions import acceptance
from service.submissions.continuation import ContinuationFields, prepare_continuation
from service.submissions.responses import is_over, job_response, not_modified
from service.submissions.validation import PreparedJob, check_model, passes_of
from touchstone.errors import InvalidParameter, JobConflict, LedgerUnavailable
from touchstone.ledger.records import Job, JobKind, Status
from touchstone.ledger.replies import JobChange
from touchstone.ledger.tenant_ledger import TenantLedger

router = APIRouter(tags=["jobs"])

_NAME = Query(max_length=64)
_SINCE = Query(
    description="Jobs accepted at this time or later; RFC 3339, a time without its zone is refused.",
    examples=["2026-11-22T09:30:00Z"],
)
_UNTIL = Query(
    description="Jobs accepted before this time; likewise. One that lies before `since` is refused.",
    examples=["2026-11-22T10:30:00Z"],
)


@router.get(
    "/v1/jobs",
    dependencies=[reader],
    operation_id="list_jobs",
    summary="Jobs, newest first",
    response_model=Page[schemas.Job],
    responses={200: examples.page(examples.JOB), **problems.responses(422)},
)
def list_jobs(
    request: Request,
    backend: Tenant,
    *,
    status: Status | None = None,
    kind: JobKind | None = None,
    method: Annotated[str | None, _NAME] = None,
    model: Annotated[str | None, _NAME] = None,
    since: Annotated[Moment | None, _SINCE] = None,
    until: Annotated[Moment | None, _UNTIL] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Those that fit every filter."""
    if since and until and until < since:
        raise InvalidParameter("until: it lies before since, so no time fits both; swap them", field="until")
    found = backend.ledger.find(
        status=status,
        kind=kind,
        method=method,
        model=model,
        since=since,
        until=until,
        limit=limit,
        cursor=cursor,
    )
    page = Page[schemas.Job](items=[schemas.show(job) for job in found.jobs], cursor=found.cursor)
    response = Response(page.model_dump_json(), media_type="application/json")
    link_next(request, response, found.cursor)
    return response


@router.get(
    "/v1/jobs/{job}",
    dependencies=[reader],
    operation_id="get_job",
    summary="One job",
    response_model=schemas.Job,
    responses={
        200: examples.content(examples.JOB),
        304: {"description": "The client has the current version of the job."},
        **problems.responses(404, 429),
    },
    openapi_extra={"parameters": [operations.PREFER]},
)
async def get_job(
    request: Request, backend: Tenant, job: JobId, seconds: WaitSeconds, if_none_match: IfNoneMatch = None
) -> Response:
    """`Prefer: wait=N` delays the response until the job has ended, or with `If-None-Match` has changed.

    `ahead`, the number of jobs before a queued one, is not part of the entity tag.
    """

    def matches_wait(found: Job | JobChange) -> bool:
        if if_none_match is None:
            return is_over(found)
        return not headers.matches(if_none_match, schemas.etag(found))

    with backend.waiters.listen(job, matches_wait) as listener:
        found = await to_thread.run_sync(backend.ledger.read, job)
        if seconds:
            may_wait = permission_check(request)
            with backend.open_requests.wait(backend.ledger.tenant):
                found = await backend.waiters.wait_until(listener, found, seconds=seconds, may_wait=may_wait)
            if may_wait:
                await to_thread.run_sync(check_still_permitted, request)
    if headers.matches(if_none_match, schemas.etag(found)):
        return not_modified(found)
    ahead = await to_thread.run_sync(_count_ahead, backend.ledger, found)
    return job_response(found, waited=seconds is not None, ahead=ahead)


def _count_ahead(ledger: TenantLedger, job: Job) -> int | None:
    """How many jobs wait before a queued one; None while the ledger is unavailable."""
    try:
        return ledger.count_ahead(job.id) if job.status == "queued" else None
    except LedgerUnavailable:
        return None


@router.post(
    "/v1/jobs/{job}/cancel",
    dependencies=[submitter],
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=202,
    response_model=schemas.Job,
    responses={202: examples.content(examples.JOB), **problems.responses(404, 409)},
)
def cancel_job(backend: Tenant, job: JobId) -> Response:
    """A queued job ends at once, a running one within a second. Canceling again changes nothing."""
    return job_response(backend.ledger.cancel(job), status=202, location=True)


@router.post(
    "/v1/jobs/{job}/rerun",
    dependencies=[submitter],
    operation_id="rerun_job",
    summary="Run a job again and compare",
    status_code=202,
    response_model=schemas.Job,
    responses={
        200: {"model": schemas.Job, **examples.content(examples.JOB)},
        202: examples.content(examples.JOB),
        **problems.responses(404, 409, 422, 429, 507),
    },
    openapi_extra={"parameters": operations.HEADERS},
)
async def rerun_job(request: Request, backend: Tenant, job: KnownJob, preferences: Preferences) -> Response:
    """A new job of the same submission; `rerun` in its result says whether the bytes are equal."""
    prepared = await to_thread.run_sync(_prepare_rerun, backend, job)
    return await acceptance.accept_and_respond(request, backend, preferences, prepared)


@router.post(
    "/v1/jobs/{job}/continue",
    dependencies=[submitter],
    operation_id="continue_job",
    summary="Continue a certificate",
    status_code=202,
    response_model=schemas.Job,
    responses={
        200: {"model": schemas.Job, **examples.content(examples.CERTIFICATE)},
        202: examples.content(examples.CONTINUATION),
        **problems.responses(400, 404, 408, 409, 413, 415, 422, 429, 507),
    },
    openapi_extra=operations.describe_fields(ContinuationFields, example={"n": 10_000, "target_radius": 0.5}),
)
async def continue_job(
    request: Request, backend: Tenant, job: KnownJob, preferences: Preferences
) -> Response:
    """A new job with `n` more samples on top of those counted; for certificates with `rule=e_process`, which
    stay valid when they are read, stopped or continued at any time.
    """
    prepare = partial(prepare_continuation, job, backend=backend)
    return await acceptance.submit(request, backend, preferences, prepare)


def _prepare_rerun(backend: TenantBackend, job: Job) -> PreparedJob:
    if job.submission.image is None:
        raise JobConflict(f"a job of kind {job.submission.kind} cannot be run again; submit it anew")
    if job.status != "succeeded":
        raise JobConflict(
            f"the job is {job.status}; only one that has succeeded can be compared with a rerun"
        )
    asked = job.submission
    check_model(asked, backend.models)
    drawn = (job.result or {}).get("sampling", {}).get("seed", asked.seed)  # of the pool, where there was one
    changes = {"rerun_of": job.id, "continues": None, "seed": drawn}
    return PreparedJob(asked.model_copy(update=changes), backend.blobs.get(asked.source), passes_of(asked))


@router.delete(
    "/v1/jobs/{job}",
    dependencies=[submitter],
    operation_id="delete_job",
    summary="Delete a job",
    status_code=204,
    responses={204: {"description": "The job is deleted."}, **problems.responses(404, 409)},
)
def delete_job(backend: Tenant, job: JobId) -> Response:
    """A running job has to be canceled first."""
    backend.ledger.delete(job)
    return Response(status_code=204)
