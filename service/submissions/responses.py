"""Accepting a submission and answering with the job, with the image itself, or with what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request, Response

from service import headers as preferences
from service import problems, schemas
from service.auth.permissions import check_still_permitted, still_permitted
from service.http import body_limits
from service.routers import artifacts
from service.state.backend import Backend, backend_of
from service.state.job_waiters import Listener
from service.submissions import bodies
from service.submissions.bodies import Received
from service.submissions.disk_space import check_room
from service.submissions.validation import Prepared
from touchstone.ledger.records import TERMINAL, Job
from touchstone.ledger.replies import Change
from touchstone.logs import get_logger

T = TypeVar("T")

ADVERSARIAL = "adversarial.png"
_POLL_SECONDS = 1
_log = get_logger("answers")


def is_over(job: Job | Change) -> bool:
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
    headers = _kept_as(job)
    if location:
        headers["Location"] = schemas.path(job.id)
    if status == 202:
        headers["Retry-After"] = str(_POLL_SECONDS)
    if waited:
        headers |= preferences.APPLIED
    return Response(schemas.show(job, ahead=ahead).model_dump_json(), status, headers, "application/json")


def unchanged(job: Job) -> Response:
    """That the job is as the client knows it, and what a cache keeps of the answer that this stands for."""
    return Response(status_code=304, headers=_kept_as(job))


def _kept_as(job: Job) -> dict[str, str]:
    return {"ETag": schemas.etag(job), "Cache-Control": "no-cache", "Vary": "Accept, Prefer"}


async def submit(request: Request, prepare: Callable[[Received], Prepared]) -> Response:
    """Take a submission in, have it checked off the event loop, and answer with its job."""
    key = preferences.idempotency_key(request)
    return await answer(request, await checked(request, prepare), key)


async def checked(request: Request, check: Callable[[Received], T], *types: str) -> T:
    """Take a body in and have it checked; nothing of it is held any more when this returns."""
    received = await bodies.receive(request, *types)
    result = await to_thread.run_sync(check, received, limiter=backend_of(request).checks)
    body_limits.release(request)
    return result


async def answer(request: Request, prepared: Prepared, key: str | None) -> Response:
    """Accept a checked submission, wait for its job as long as the client prefers, and show it."""
    seconds = preferences.wait_seconds(request)
    job = await run(request, prepared, key, seconds=seconds)
    if seconds:
        await to_thread.run_sync(check_still_permitted, request)
    return await _show(request, job, waited=seconds is not None)


async def run(request: Request, prepared: Prepared, key: str | None = None, *, seconds: int | None) -> Job:
    """Accept a checked submission, and return its job when it has ended or after so many seconds, or sooner
    where the caller's key is revoked meanwhile.
    """
    backend, may_wait = backend_of(request), partial(still_permitted, request)
    with ExitStack() as listening:

        def accept() -> tuple[Job, Listener | None]:
            return _accept(backend, prepared, key, listening if seconds else None)

        job, listener = await to_thread.run_sync(accept)
        if listener and seconds:
            job = await backend.waiting.until_wanted(listener, job, seconds=seconds, may_wait=may_wait)
    return job


def _accept(
    backend: Backend, prepared: Prepared, key: str | None, listening: ExitStack | None
) -> tuple[Job, Listener | None]:
    """Write everything down, then ring; a listener hears from before the bell, so it misses nothing.

    Of what would be refused nothing is stored: whoever may have no more jobs could fill the disk else.
    """
    asked, needs = prepared.submission, prepared.needs()
    idempotency = (key, prepared.digest()) if key else None
    check_room(backend)
    backend.ledger.check(asked, idempotency=idempotency, needs=needs)
    prepared.keep(backend.blobs)
    job, created = backend.ledger.accept(asked, idempotency=idempotency, needs=needs)
    _log.info("accepted", new=created, **_about(job))
    listener = listening.enter_context(backend.waiting.listen(job.id, is_over)) if listening else None
    if created:
        backend.ringer.ring(job.id)
    return job, listener


def _about(job: Job) -> dict[str, Any]:
    """What a log may tell of a job: its request's id stands in the same line, and workers name the job."""
    asked = job.submission
    told = {"tenant": asked.tenant, "kind": asked.kind, "method": asked.method, "model": asked.model.id}
    return {"job": job.id, **told}


async def _show(request: Request, job: Job, *, waited: bool) -> Response:
    if not (waited and is_over(job)):
        return job_response(job, status=202, waited=waited, location=True)
    if preferences.wants_png(request) and job.submission.kind == "attack":
        return await _image(request, job)
    return job_response(job, waited=True, location=True)


async def _image(request: Request, job: Job) -> Response:
    """The adversarial image itself, or the problem of the job that did not make one."""
    if job.status != "succeeded":
        return failed(request, job, {**_described_by(job), **preferences.APPLIED})
    response = await artifacts.whole(backend_of(request), job, ADVERSARIAL)
    response.headers.update({**preferences.APPLIED, **_described_by(job), "Location": schemas.path(job.id)})
    response.headers["Vary"] = "Accept, Prefer"
    return response


def failed(request: Request, job: Job, headers: Mapping[str, str]) -> Response:
    """The problem of a job that did not succeed."""
    code = job.error.code if job.error else job.status
    detail = job.error.detail if job.error else f"the job was {job.status}"
    extra = {**(job.error.extra if job.error else {}), "job": schemas.path(job.id)}
    return problems.write(request, problems.status_of(code), code, detail, extra=extra, headers=headers)


def _described_by(job: Job) -> dict[str, str]:
    return {"Link": f'<{schemas.path(job.id)}>; rel="describedby"'}
