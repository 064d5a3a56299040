"""From a checked request to an accepted job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request, Response

from service.auth.permissions import check_still_permitted, permission_check
from service.headers import SubmissionHeaders
from service.http import body_limits
from service.http.body_limits import SMALL_BODY
from service.state.backend import TenantBackend
from service.state.job_waiters import Waiter
from service.submissions import bodies
from service.submissions.bodies import RawBody
from service.submissions.disk_space import check_disk_space
from service.submissions.responses import is_over, submission_response
from service.submissions.validation import PreparedJob
from touchstone.ledger.records import Job
from touchstone.logs import get_logger

T = TypeVar("T")

Accepted = tuple[Job, Waiter | None]
"""A job, and the waiter for its end where the client waits."""

_log = get_logger("answers")


async def submit(
    request: Request,
    backend: TenantBackend,
    preferences: SubmissionHeaders,
    prepare: Callable[[RawBody], PreparedJob],
) -> Response:
    """Receive a submission, check it in a thread, accept it, and respond with its job."""
    seconds = preferences.wait_seconds
    with ExitStack() as stack:
        if seconds:
            stack.enter_context(backend.open_requests.wait(backend.ledger.tenant))
        accepted = await _receive_and_accept(
            request, backend, prepare, preferences.idempotency_key, stack if seconds else None
        )
        job = await _wait(request, backend, accepted, seconds)
    return await _respond(request, backend, preferences, job)


async def _receive_and_accept(
    request: Request,
    backend: TenantBackend,
    prepare: Callable[[RawBody], PreparedJob],
    key: str | None,
    stack: ExitStack | None,
) -> Accepted:
    """Receive a body, and check and accept it, in one call in a thread where it is small: each call costs
    more than most of what is done in it. For large ones memory counts, so that few are checked at once.
    """
    received = await bodies.receive(request)
    if len(received.content) <= SMALL_BODY:
        return await backend.submit_threads.run(
            backend.ledger.tenant, _check_and_accept, backend, prepare, received, key, stack
        )
    prepared = await _check(request, backend, prepare, received)
    del received
    return await to_thread.run_sync(_accept, backend, prepared, key, stack)


async def receive_checked(
    request: Request, backend: TenantBackend, check: Callable[[RawBody], T], *types: str
) -> T:
    """Receive a body and check it in a thread; the body's memory is free again when this returns."""
    return await _check(request, backend, check, await bodies.receive(request, *types))


async def _check(
    request: Request, backend: TenantBackend, check: Callable[[RawBody], T], received: RawBody
) -> T:
    result = await backend.check_threads.run(backend.ledger.tenant, check, received)
    body_limits.release(request)
    return result


async def accept_and_respond(
    request: Request, backend: TenantBackend, preferences: SubmissionHeaders, prepared: PreparedJob
) -> Response:
    """Accept a checked submission, wait for its job as long as the client prefers, and respond with it."""
    key, seconds = preferences.idempotency_key, preferences.wait_seconds
    job = await accept_and_wait(request, backend, prepared, key, seconds=seconds)
    return await _respond(request, backend, preferences, job)


async def _respond(
    request: Request, backend: TenantBackend, preferences: SubmissionHeaders, job: Job
) -> Response:
    if preferences.wait_seconds and permission_check(request):
        await to_thread.run_sync(check_still_permitted, request)
    return await submission_response(request, backend, preferences, job)


async def accept_and_wait(
    request: Request,
    backend: TenantBackend,
    prepared: PreparedJob,
    key: str | None = None,
    *,
    seconds: int | None,
) -> Job:
    """Accept a checked submission, and return its job when it has ended or after so many seconds, or sooner
    where the caller's key is revoked meanwhile.
    """
    with ExitStack() as stack:
        if seconds:
            stack.enter_context(backend.open_requests.wait(backend.ledger.tenant))
        accepted = await to_thread.run_sync(_accept, backend, prepared, key, stack if seconds else None)
        return await _wait(request, backend, accepted, seconds)


async def _wait(request: Request, backend: TenantBackend, accepted: Accepted, seconds: int | None) -> Job:
    job, waiter = accepted
    if waiter and seconds:
        may_wait = permission_check(request)
        job = await backend.waiters.wait_until(waiter, job, seconds=seconds, may_wait=may_wait)
    return job


def _check_and_accept(
    backend: TenantBackend,
    prepare: Callable[[RawBody], PreparedJob],
    received: RawBody,
    key: str | None,
    stack: ExitStack | None,
) -> Accepted:
    return _accept(backend, prepare(received), key, stack)


def _accept(
    backend: TenantBackend, prepared: PreparedJob, key: str | None, stack: ExitStack | None
) -> Accepted:
    """Store everything, then dispatch; a waiter is registered before, so it misses nothing.

    What would be refused is not stored: a tenant over its quota could fill the disk otherwise.
    """
    asked, needs = prepared.submission, prepared.needs()
    idempotency = (key, prepared.digest()) if key else None
    check_disk_space(backend)
    backend.ledger.check(asked, idempotency=idempotency, usage=needs)
    prepared.store(backend.blobs)
    job, created = backend.ledger.accept(asked, idempotency=idempotency, usage=needs)
    _log.info("accepted", new=created, **_log_fields(job))
    waiter = stack.enter_context(backend.waiters.listen(job.id, is_over)) if stack else None
    if created:
        backend.dispatcher.dispatch(job.id)
    return job, waiter


def _log_fields(job: Job) -> dict[str, Any]:
    """Fields of a job for the log; the request's id is in the same line, and workers log the job's id."""
    asked = job.submission
    told = {"tenant": asked.tenant, "kind": asked.kind, "method": asked.method, "model": asked.model.id}
    return {"job": job.id, **told}
