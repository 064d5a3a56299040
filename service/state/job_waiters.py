"""Waking those who wait for a job: one thread hears of changes, the event loop wakes the listeners."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from anyio import CapacityLimiter, to_thread

from service.state.broadcaster import News
from touchstone.errors import LedgerUnavailable, UnknownJob
from touchstone.ledger.events import Watch
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job
from touchstone.ledger.replies import Change
from touchstone.logs import get_logger

RECHECK_SECONDS = 1.0
"""How often a waiter looks for itself, in case the message that should wake it was lost."""

LONGEST_SECONDS = 60

LOOKS = 50
"""Waiters that look at once: where the ledger hangs, no request queues for a thread behind all of them."""

Wanted = Callable[[Job | Change], bool]


class Listener:
    """Somebody who waits for one job to be as `wanted`."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._event = asyncio.Event()
        self._news: Job | None = None

    def wake(self, news: Job | None = None) -> None:
        """Tell of the job as it is now; to be called on the event loop."""
        self._news = news
        self._event.set()

    async def changed(self, seconds: float) -> Job | None:
        """Return at the next waking, or after so many seconds: the job, if it is known."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return None
        self._event.clear()
        return self._news


class Waiting:
    """All who wait for jobs, and the thread that hears of changes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._listeners: dict[str, set[Listener]] = {}
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._hear, name="ledger-watch", daemon=True)
        self._log = get_logger("watch")
        self.news = News(ledger)
        self.looks = CapacityLimiter(LOOKS)
        self.closing = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to hear of changes; listeners are woken on this loop."""
        self._loop = loop
        self.news.start(loop)
        self._thread.start()

    def close(self) -> None:
        """Let everybody go, for nobody waits in a process that shuts down. To be called on the loop."""
        self.closing = True
        self.news.close()
        with self._lock:
            everybody = [listener for listeners in self._listeners.values() for listener in listeners]
        for listener in everybody:
            listener.wake()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join()

    @contextmanager
    def listen(self, job: str, wanted: Wanted = lambda _: True) -> Iterator[Listener]:
        """Hear from now on of changes that leave a job as `wanted`; may be entered in any thread."""
        listener = Listener(wanted)
        with self._lock:
            self._listeners.setdefault(job, set()).add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners[job].discard(listener)
                if not self._listeners[job]:
                    del self._listeners[job]

    async def until_wanted(
        self, listener: Listener, job: Job, *, seconds: float, may_wait: Callable[[], bool]
    ) -> Job:
        """The job once it is as the listener wanted, or as it was last known after so many seconds, or when
        they may wait no longer; that is asked in a thread, each second.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while not listener.wanted(job) and not self.closing and (left := end - clock()) > 0:
            news = await listener.changed(min(left, RECHECK_SECONDS))
            if news is None:
                news = await to_thread.run_sync(self._look, job, may_wait, limiter=self.looks)
            if news is None:
                break
            job = news
        return job

    def _look(self, job: Job, may_wait: Callable[[], bool]) -> Job | None:
        """The job as it is now, None for who may not wait; a ledger that is out of reach changes nothing, and
        is waited for once.
        """
        try:
            return self._ledger.read(job.id) if may_wait() else None
        except LedgerUnavailable:
            return job

    def _hear(self) -> None:
        while not self._stop.is_set():
            try:
                with self._ledger.watch() as self._watch:
                    self.news.interrupt()
                    self._tell_all(self._watch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next changes must be heard of
                self._log.warning("changes are not heard of", reason=f"{type(error).__name__}: {error}")
                self._stop.wait(RECHECK_SECONDS)

    def _tell_all(self, watch: Watch) -> None:
        # `stop` sets the flag before it looks for a watch to close, so one of the two sees the other.
        if self._stop.is_set():
            return
        for change in watch.steadily():
            if change is not None:
                self._pass_on(change)
            self.news.tick()

    def _pass_on(self, change: Change) -> None:
        """Read the job where anybody wants to see it, once for all of them."""
        woken, shown = self._wanting(change), self.news.hear(change)
        job: Job | None = None
        if woken or shown:
            with suppress(UnknownJob):
                job = self._ledger.read(change.id)
        if job and shown:
            self.news.show(job)
        self._tell(woken, job)

    def _wanting(self, change: Change) -> list[Listener]:
        with self._lock:
            listeners = tuple(self._listeners.get(change.id, ()))
        deleted = change.status == "deleted"
        return [listener for listener in listeners if deleted or listener.wanted(change)]

    def _tell(self, listeners: Iterable[Listener], job: Job | None) -> None:
        for listener in listeners:
            self._loop.call_soon_threadsafe(listener.wake, job)
