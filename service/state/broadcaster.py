"""Events of all jobs for any number of subscribers: each change is read once and sent to all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from service import schemas
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Progress
from touchstone.ledger.replies import JobChange

PROGRESS_SECONDS = 1.0
"""Seconds between two `progress` events."""

MAX_PENDING = 10_000
"""Jobs that a subscriber may be behind with; one further behind is closed, and reads the list again."""

MAX_PENDING_LETTERS = 32 * 2**20
"""The same for the length of their events."""


@dataclass(frozen=True)
class ServerEvent:
    """An event, serialized once for all subscribers."""

    event: str
    data: str


class Subscriber:
    """A subscriber to a tenant's jobs, on the event loop; of each job only the latest event is kept."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._jobs: dict[str, ServerEvent] = {}
        self._letters = 0
        self._progress: dict[str, Progress] = {}
        self._event = asyncio.Event()
        self.closed = False

    def note(self, job: str, event: ServerEvent) -> None:
        """Note the change of a job; it replaces the job's progress."""
        replaced = self._jobs.get(job)
        letters = self._letters + len(event.data) - (len(replaced.data) if replaced else 0)
        if len(self._jobs) >= MAX_PENDING or letters > MAX_PENDING_LETTERS:
            self.close()
        if self.closed:
            return
        self._progress.pop(job, None)
        self._jobs[job], self._letters = event, letters
        self._event.set()

    def note_progress(self, progress: Mapping[str, Progress]) -> None:
        """Note the progress of some jobs."""
        if not self.closed:
            self._progress.update(progress)
            self._event.set()

    def close(self) -> None:
        """End the stream."""
        self._jobs.clear()
        self._progress.clear()
        self.closed = True
        self._event.set()

    async def next(self) -> ServerEvent | None:
        """Wait for the next event; None at the end."""
        while not self.closed:
            if self._jobs:
                event = self._jobs.pop(next(iter(self._jobs)))
                self._letters -= len(event.data)
                return event
            if self._progress:
                return self._take_progress()
            self._event.clear()
            await self._event.wait()
        return None

    def _take_progress(self) -> ServerEvent:
        items = [{"id": job, **far.model_dump()} for job, far in self._progress.items()]
        self._progress.clear()
        return ServerEvent("progress", json.dumps({"items": items}))


class Broadcaster:
    """All subscribers, and the progress that is still to be sent.

    The thread that watches the ledger calls `note`, `publish`, `flush_progress` and `reset`, so events keep
    the order of the changes. All other methods are called on the event loop.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._subscribers: set[Subscriber] = set()
        self._pending_progress: dict[str, str] = {}  # tenants by job id
        self._flushed_at = 0.0
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send events on this loop."""
        self._loop = loop

    @contextmanager
    def subscribe(self, tenant: str) -> Iterator[Subscriber]:
        """Subscribe to all jobs of this tenant from now on."""
        subscriber = Subscriber(tenant)
        if self._closed:
            subscriber.close()
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def close(self) -> None:
        """Close all subscribers, and accept no more."""
        self._closed = True
        self._close_all()

    def note(self, change: JobChange) -> bool:
        """Note a change; true where the job has to be read and published."""
        # The set changes on the event loop meanwhile.
        wanted = any(reader.tenant == change.tenant for reader in tuple(self._subscribers))
        if not wanted or change.kind == "metric":
            return False
        if change.kind == "progress":
            self._pending_progress[change.id] = change.tenant
            return False
        self._pending_progress.pop(change.id, None)
        if change.status != "deleted":
            return True
        self._publish_event(change.id, change.tenant, ServerEvent("deleted", json.dumps({"id": change.id})))
        return False

    def publish(self, job: Job) -> None:
        """Send a job in its current state."""
        self._publish_event(
            job.id, job.submission.tenant, ServerEvent("job", schemas.show(job).model_dump_json())
        )

    def flush_progress(self) -> None:
        """Send the progress of jobs that have moved, unless the last `progress` was too recent."""
        now = time.monotonic()
        if not self._pending_progress or now - self._flushed_at < PROGRESS_SECONDS:
            return
        self._flushed_at, moved, self._pending_progress = now, self._pending_progress, {}
        if self._subscribers:
            progress = self._ledger.progress(moved.keys())
            for tenant in {moved[job] for job in progress}:
                self._publish_progress(
                    tenant, {job: far for job, far in progress.items() if moved[job] == tenant}
                )

    def reset(self) -> None:
        """Close all subscribers after a change may have been missed: they reconnect and read the list."""
        self._loop.call_soon_threadsafe(self._close_all)

    def _publish_event(self, job: str, tenant: str, event: ServerEvent) -> None:
        self._send(tenant, lambda reader: reader.note(job, event))

    def _publish_progress(self, tenant: str, progress: Mapping[str, Progress]) -> None:
        self._send(tenant, lambda reader: reader.note_progress(progress))

    def _send(self, tenant: str, note: Callable[[Subscriber], None]) -> None:
        def send_all() -> None:
            for reader in self._subscribers:
                if reader.tenant == tenant:
                    note(reader)

        self._loop.call_soon_threadsafe(send_all)

    def _close_all(self) -> None:
        for reader in self._subscribers:
            reader.close()
