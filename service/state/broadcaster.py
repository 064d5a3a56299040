"""What happens to all jobs, for any number who want to know: read once, and told to everybody."""

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
from touchstone.ledger.replies import Change

PAUSE_SECONDS = 1.0
"""Between one word of how far the jobs are and the next."""

MOST_PENDING = 10_000
"""Jobs that a reader may be behind with; one that is further behind is let go, and reads the list anew."""


@dataclass(frozen=True)
class Item:
    """An event, written once for everybody."""

    event: str
    data: str


class Reader:
    """Who hears of a tenant's jobs, on the event loop; of each, only the latest waits to be taken."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._jobs: dict[str, Item] = {}
        self._progress: dict[str, Progress] = {}
        self._event = asyncio.Event()
        self.over = False

    def hear(self, job: str, item: Item) -> None:
        """Take note of what became of a job, which says more than how far it was."""
        if len(self._jobs) >= MOST_PENDING:
            self.end()
        if self.over:
            return
        self._progress.pop(job, None)
        self._jobs[job] = item
        self._event.set()

    def hear_progress(self, progress: Mapping[str, Progress]) -> None:
        """Take note of how far some jobs are."""
        if not self.over:
            self._progress.update(progress)
            self._event.set()

    def end(self) -> None:
        """Nothing comes any more."""
        self._jobs.clear()
        self._progress.clear()
        self.over = True
        self._event.set()

    async def next(self) -> Item | None:
        """The next event, once there is one; None at the end."""
        while not self.over:
            if self._jobs:
                return self._jobs.pop(next(iter(self._jobs)))
            if self._progress:
                return self._take_progress()
            self._event.clear()
            await self._event.wait()
        return None

    def _take_progress(self) -> Item:
        items = [{"id": job, **far.model_dump()} for job, far in self._progress.items()]
        self._progress.clear()
        return Item("progress", json.dumps({"items": items}))


class News:
    """All who read, and what they have yet to be told.

    The thread that hears of changes calls `hear`, `show`, `tick` and `interrupt`, so everything is told in
    the order in which it happened. Everything else is called on the event loop.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._readers: set[Reader] = set()
        self._moved: dict[str, str] = {}  # by id, the tenant
        self._ticked = 0.0
        self._closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell the readers of this loop."""
        self._loop = loop

    @contextmanager
    def reader(self, tenant: str) -> Iterator[Reader]:
        """Hear of everything that is this tenant's from now on."""
        reader = Reader(tenant)
        if self._closed:
            reader.end()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """Let everybody go, and nobody in any more."""
        self._closed = True
        self._let_go()

    def hear(self, change: Change) -> bool:
        """Note a change; true where the job has to be shown to those who read."""
        if not self._readers or change.news == "metric":
            return False
        if change.news == "progress":
            self._moved[change.id] = change.tenant
            return False
        self._moved.pop(change.id, None)
        if change.status != "deleted":
            return True
        self._tell_of(change.id, change.tenant, Item("deleted", json.dumps({"id": change.id})))
        return False

    def show(self, job: Job) -> None:
        """Tell of a job as it is now."""
        self._tell_of(job.id, job.submission.tenant, Item("job", schemas.show(job).model_dump_json()))

    def tick(self) -> None:
        """Tell how far the jobs are that have moved, unless that was told a moment ago."""
        now = time.monotonic()
        if not self._moved or now - self._ticked < PAUSE_SECONDS:
            return
        self._ticked, moved, self._moved = now, self._moved, {}
        if self._readers:
            progress = self._ledger.progress(moved.keys())
            for tenant in {moved[job] for job in progress}:
                self._tell_how_far(
                    tenant, {job: far for job, far in progress.items() if moved[job] == tenant}
                )

    def interrupt(self) -> None:
        """Let everybody go because something may have been missed: they come back and read the list anew."""
        self._loop.call_soon_threadsafe(self._let_go)

    def _tell_of(self, job: str, tenant: str, item: Item) -> None:
        self._tell(tenant, lambda reader: reader.hear(job, item))

    def _tell_how_far(self, tenant: str, progress: Mapping[str, Progress]) -> None:
        self._tell(tenant, lambda reader: reader.hear_progress(progress))

    def _tell(self, tenant: str, tell: Callable[[Reader], None]) -> None:
        def everybody() -> None:
            for reader in self._readers:
                if reader.tenant == tenant:
                    tell(reader)

        self._loop.call_soon_threadsafe(everybody)

    def _let_go(self) -> None:
        for reader in self._readers:
            reader.end()
