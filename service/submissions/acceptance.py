"""From a checked request to an accepted job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request, Response

from service import headers as preferences
from service.auth.permissions import check_still_permitted, still_permitted
from service.dependencies import backend_of
from service.http import body_limits
from service.state.backend import Backend
from service.state.job_waiters import Listener
from service.submissions import bodies
from service.submissions.bodies import Received
from service.submissions.disk_space import check_room
from service.submissions.responses import is_over, show
from service.submissions.validation import Prepared
from touchstone.ledger.records import Job
from touchstone.logs import get_logger

T = TypeVar("T")

_log = get_logger("answers")


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
    return await show(request, job, waited=seconds is not None)


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
