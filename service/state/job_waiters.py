"""Requests that wait for jobs: one thread watches the ledger, the event loop wakes the waiters."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from anyio import CapacityLimiter, to_thread

from service.state.broadcaster import Broadcaster
from touchstone.errors import LedgerUnavailable, UnknownJob
from touchstone.ledger.events import Watch
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job
from touchstone.ledger.replies import JobChange
from touchstone.logs import get_logger

RECHECK_SECONDS = 1.0
"""After how long a waiter reads its job itself, in case the message that should wake it was lost. Each next
pause is twice as long, up to `MAX_PAUSES` of these.
"""

MAX_PAUSES = 8

MAX_WAIT_SECONDS = 60

MAX_READS = 50
"""Waiters that read the ledger at once: where it hangs, they leave the other threads to other requests."""

Condition = Callable[[Job | JobChange], bool]


class Waiter:
    """Waits until one job meets a `condition`."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self._event = asyncio.Event()
        self.job: Job | None = None
        """The job with which it was woken last, if that was known."""

    def wake(self, job: Job | None = None) -> None:
        """Wake the waiter with the current job; to be called on the event loop."""
        self.job = job
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until woken, or for so many seconds; returns whether it was woken."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class _Rechecks:
    """When a waiter reads its job itself, on the event loop's clock: ever more rarely, and at the end."""

    def __init__(self, clock: Callable[[], float], end: float) -> None:
        self._clock, self._end = clock, end
        self._pause = RECHECK_SECONDS
        self._at = min(end, clock() + self._pause)

    def left(self) -> float:
        """The seconds until the next."""
        return self._at - self._clock()

    def take(self) -> bool:
        """Whether it is time, after which the next pause begins."""
        if self.left() > 0:
            return False
        self._pause = min(2 * self._pause, MAX_PAUSES * RECHECK_SECONDS)
        self._at = min(self._end, self._clock() + self._pause)
        return True


class JobWaiters:
    """All waiters for jobs, and the thread that watches the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiters: dict[str, set[Waiter]] = {}
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch_changes, name="ledger-watch", daemon=True)
        self._log = get_logger("watch")
        self.broadcaster = Broadcaster(ledger)
        self.read_limiter = CapacityLimiter(MAX_READS)
        self.closing = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; waiters are woken on this loop."""
        self._loop = loop
        self.broadcaster.start(loop)
        self._thread.start()

    def close(self) -> None:
        """End all waits before the process shuts down. To be called on the loop."""
        self.closing = True
        self.broadcaster.close()
        with self._lock:
            everybody = [listener for listeners in self._waiters.values() for listener in listeners]
        for listener in everybody:
            listener.wake()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join()

    @contextmanager
    def listen(self, job: str, condition: Condition = lambda _: True) -> Iterator[Waiter]:
        """Register a waiter, woken when the job meets the `condition`; may be entered in any thread."""
        waiter = Waiter(condition)
        with self._lock:
            self._waiters.setdefault(job, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[job].discard(waiter)
                if not self._waiters[job]:
                    del self._waiters[job]

    async def wait_until(
        self, waiter: Waiter, job: Job, *, seconds: float, may_wait: Callable[[], bool] | None
    ) -> Job:
        """The job once it meets the waiter's condition; its last known state after so many seconds, or once
        `may_wait`, which is called in a thread each second, returns false. None stands for a client that may
        wait as long as it likes.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        rechecks, often = _Rechecks(clock, end), RECHECK_SECONDS if may_wait else seconds
        while not waiter.condition(job) and not self.closing and clock() < end:
            woken = await waiter.wait(min(rechecks.left(), often))
            if woken and waiter.job is not None:
                job = waiter.job
                continue
            if (reads := rechecks.take() or woken) or may_wait:
                found = await to_thread.run_sync(self._read, job, may_wait, reads, limiter=self.read_limiter)
                if found is None:
                    break
                job = found
        return job

    def _read(self, job: Job, may_wait: Callable[[], bool] | None, reads: bool) -> Job | None:
        """The current job, or the last known one where it is not read, or None where the client may not wait
        any more. While the ledger is unavailable the last known state stays.
        """
        try:
            if may_wait and not may_wait():
                return None
            return self._ledger.read(job.id) if reads else job
        except LedgerUnavailable:
            return job

    def _watch_changes(self) -> None:
        while not self._stop.is_set():
            try:
                with self._ledger.watch() as self._watch:
                    self.broadcaster.reset()
                    self._handle_all(self._watch)
            except Exception as error:  # noqa: BLE001 - after any error the next changes must be received
                self._log.warning("changes are not heard of", reason=f"{type(error).__name__}: {error}")
                self._stop.wait(RECHECK_SECONDS)

    def _handle_all(self, watch: Watch) -> None:
        # `stop` sets the flag before it looks for a watch to close, so one of the two sees the other.
        if self._stop.is_set():
            return
        for change in watch.poll():
            if change is not None:
                self._handle(change)
            self.broadcaster.flush_progress()

    def _handle(self, change: JobChange) -> None:
        """Read a job that a waiter or subscriber needs, once for all of them."""
        woken, shown = self._find_waiters(change), self.broadcaster.note(change)
        job: Job | None = None
        if woken or shown:
            with suppress(UnknownJob):
                job = self._ledger.read(change.id)
        if job and shown:
            self.broadcaster.publish(job)
        self._wake(woken, job)

    def _find_waiters(self, change: JobChange) -> list[Waiter]:
        with self._lock:
            listeners = tuple(self._waiters.get(change.id, ()))
        deleted = change.status == "deleted"
        return [listener for listener in listeners if deleted or listener.condition(change)]

    def _wake(self, waiters: Iterable[Waiter], job: Job | None) -> None:
        for listener in waiters:
            self._loop.call_soon_threadsafe(listener.wake, job)
