"""Events of one job or of all jobs, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service import problems
from service.auth.caller import caller_of
from service.auth.permissions import is_still_permitted, reader
from service.dependencies import JobId, Tenant
from service.openapi import examples
from service.state.backend import TenantBackend
from service.state.broadcaster import Subscriber
from service.state.job_waiters import RECHECK_SECONDS
from service.submissions.responses import is_over
from touchstone.errors import LedgerUnavailable, UnknownJob
from touchstone.ledger.replies import Event

router = APIRouter(tags=["jobs"], dependencies=[reader])

KEY_CHECK_SECONDS = 0.5
"""How often the key of an open stream is checked."""

LastEventId = Annotated[
    str | None,
    Header(description="The id of the last event received; the stream continues after it."),
]


async def count_stream(backend: Tenant) -> AsyncIterator[None]:
    """Count the stream until its response has ended; one too many is refused before the response begins."""
    with backend.open_requests.stream(backend.ledger.tenant):
        yield


counted = Depends(count_stream)


@dataclass(frozen=True)
class StreamStart:
    """Where a stream begins: the events after the client's last one, and whether the job has ended."""

    after: str | None
    events: list[Event]
    over: bool


def start_stream(
    backend: Tenant, response: Response, job: JobId, last_event_id: LastEventId = None
) -> StreamStart:
    """The events so far; 204 where no more can come, which tells an EventSource not to reconnect."""
    over = is_over(backend.ledger.read(job))
    events = backend.ledger.events(job, after=last_event_id)
    if over and not events:
        response.status_code = 204
    return StreamStart(last_event_id, events, over)


@router.get(
    "/v1/jobs/{job}/events",
    operation_id="stream_events",
    summary="The events of a job, live",
    dependencies=[counted],
    response_class=EventSourceResponse,
    responses={
        200: {
            "content": {
                "text/event-stream": {
                    "example": 'event: progress\ndata: {"done": 7, "total": 40}\nid: 1700000000000-0\n\n'
                }
            }
        },
        204: {"description": "The job has ended, and the client has all its events."},
        **problems.responses(404, 422, 429),
    },
)
async def stream_events(
    request: Request,
    backend: Tenant,
    job: JobId,
    first: Annotated[StreamStart, Depends(start_stream)],
) -> AsyncIterator[ServerSentEvent]:
    """`status`, `progress` and `metric` as they come, and `completed` as the last.

    The id of an event, sent as `Last-Event-ID`, resumes the stream after it. Comments keep an idle connection
    alive.
    """
    with backend.waiters.listen(job) as listener:
        events: list[Event] | None = first.events
        after = first.after
        while events is not None and not backend.waiters.closing:
            for event in events:
                yield ServerSentEvent(event=event.type, id=event.id, raw_data=json.dumps(event.data))
                after = event.id
            if first.over or any(event.type == "completed" for event in events):
                return
            if not events:
                await listener.wait(RECHECK_SECONDS)
            events = await to_thread.run_sync(
                _read_more, request, backend, job, after, limiter=backend.waiters.read_limiter
            )


def _read_more(request: Request, backend: TenantBackend, job: str, after: str | None) -> list[Event] | None:
    """The events since; None ends the stream, and a client that wants more reconnects with its last id."""
    try:
        return backend.ledger.events(job, after=after) if is_still_permitted(request) else None
    except (UnknownJob, LedgerUnavailable):
        return None


async def subscribe(request: Request, backend: Tenant) -> AsyncIterator[Subscriber]:
    """Subscribe to the tenant's jobs before the response begins: a list read later leaves no gap."""
    caller = caller_of(request)
    with backend.waiters.broadcaster.subscribe(caller.tenant) as subscriber:
        watch = asyncio.create_task(_watch_key(request, backend, subscriber)) if caller.key_id else None
        try:
            yield subscriber
        finally:
            if watch:
                watch.cancel()


async def _watch_key(request: Request, backend: TenantBackend, subscriber: Subscriber) -> None:
    """Close a stream whose key is no longer valid, or can no longer be checked."""
    try:
        while await to_thread.run_sync(_may_continue, request, limiter=backend.waiters.read_limiter):
            await asyncio.sleep(KEY_CHECK_SECONDS)
    finally:
        subscriber.close()


def _may_continue(request: Request) -> bool:
    """While the ledger is unavailable nothing is sent, so the stream stays open."""
    try:
        return is_still_permitted(request)
    except LedgerUnavailable:
        return True


@router.get(
    "/v1/events",
    operation_id="stream_all_events",
    summary="The events of all jobs, live",
    dependencies=[counted],
    response_class=EventSourceResponse,
    responses={
        200: {
            "content": {
                "text/event-stream": {
                    "example": f'event: deleted\ndata: {{"id": "{examples.JOB["id"]}"}}\n\n'
                    'event: progress\ndata: {"items": [{"id": "…", "done": 7, "total": 40}]}\n\n'
                }
            }
        },
        **problems.responses(429),
    },
)
async def stream_all_events(
    subscriber: Annotated[Subscriber, Depends(subscribe)],
) -> AsyncIterator[ServerSentEvent]:
    """`job` with the job where it is new or its status changes, `progress` with those that moved, at most
    once a second, and `deleted` with the id.

    A slow reader gets only the latest event of each job. The stream cannot be resumed: open it, then read the
    list, and do both again whenever it has ended. Comments keep an idle connection alive.
    """
    while (item := await subscriber.next()) is not None:
        yield ServerSentEvent(event=item.event, raw_data=item.data)
