"""One thread that calls the ledger for all running jobs, so that neither they nor the engine wait for it.

It renews their leases, stops them, sends their reports and the worker's heartbeat. It also watches the
engine: a device that hangs raises no error, so its jobs must be released.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger
from touchstone.models.measurements import Probe
from touchstone.settings import Settings
from workers.claimed_job import ClaimedJob
from workers.engine import WatchedEngine
from workers.lease_renewal import LeaseRenewal
from workers.watchdog import Watchdog

TICK_SECONDS = 0.2
RENEW_SECONDS = 0.4
BEAT_SECONDS = 1.0
NOTE_SECONDS = 86_400.0
GRACE_SECONDS = 3.5

_log = get_logger("keeper")


class LeaseKeeper:
    """Renews the leases of a worker's jobs while its engine makes progress.

    `give_up` is called with an exit code if the process should end although jobs still run: 1 if the engine
    hangs, 0 if a shutdown takes too long. `on_tick` is called repeatedly while this thread runs.
    """

    def __init__(
        self,
        worker: str,
        ledger: Ledger,
        engine: WatchedEngine,
        settings: Settings,
        *,
        give_up: Callable[[int], object],
        on_tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.worker = worker
        self.stopping = False
        """Set it to stop: running jobs are stopped, and no more are claimed. A plain flag, for signal
        handlers.
        """
        self._ledger = ledger
        self._engine = engine
        self._give_up = give_up
        self._on_tick = on_tick
        self._serves = settings.served_models
        self._max_hang = settings.hang
        self._monitor = ProgressMonitor(engine, settings.hang)
        self._noted_probes: dict[str, Probe] = {}
        self._claimed: set[ClaimedJob] = set()
        self._abandoned: set[ClaimedJob] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stopping_since: float | None = None
        self._next = {"renew": 0.0, "beat": 0.0, "note": 0.0}
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Start; the worker counts as alive from its first heartbeat on."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the worker from the ledger."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._guard(lambda: self._ledger.workers.remove(self.worker))

    @contextmanager
    def hold(self, claimed: ClaimedJob) -> Iterator[None]:
        """Renew a job's lease during the block."""
        with self._lock:
            self._claimed.add(claimed)
        if self.stopping:
            claimed.request_stop("stopping")
        try:
            yield
        finally:
            with self._lock:
                self._claimed.remove(claimed)

    def _list_claimed(self) -> list[ClaimedJob]:
        with self._lock:
            return list(self._claimed)

    def _run(self) -> None:
        while True:
            self._guard(self._on_tick)
            self._guard(self._tick)
            if self._closed.wait(TICK_SECONDS):
                return

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except LedgerUnavailable as error:
            _log.warning("the ledger is out of reach", reason=error.detail)
        except Exception:  # noqa: BLE001 - leases must be renewed at the next tick whatever fails
            _log.exception("the keeper stumbled")

    def _tick(self) -> None:
        now = time.monotonic()
        if self._monitor.is_hung(now):
            self._abandon(now)
            return
        if self.stopping:
            self._stop(now)
        if self._is_due("renew", now, RENEW_SECONDS):
            self.renew()
        self._send_reports()
        self._note_probes(now)
        if self._is_due("beat", now, BEAT_SECONDS):
            self._beat()

    def _is_due(self, task: str, now: float, pause: float) -> bool:
        due = now >= self._next[task]
        if due:
            self._next[task] = now + pause
        return due

    def claims(self) -> dict[str, int]:
        """The claims under which this worker runs its jobs."""
        return {each.job.id: each.job.claims for each in self._list_claimed() if each not in self._abandoned}

    def renew(self) -> None:
        """Renew all leases once, and stop the jobs that the ledger says to stop."""
        claimed: dict[str, ClaimedJob] = {}
        for each in sorted(self._renewable(), key=lambda each: each.job.claims):
            if each.job.id in claimed:  # its lease expired, and this worker claimed it again
                claimed[each.job.id].request_stop("lost")
            claimed[each.job.id] = each
        verdicts = self._ledger.renew(self.worker, {name: each.job.claims for name, each in claimed.items()})
        for name, verdict in verdicts.items():
            if verdict != "fine":
                claimed[name].request_stop(verdict)

    def _renewable(self) -> list[ClaimedJob]:
        """All jobs but those that have not ended long after a stop request: they may wait forever, so their
        leases are not renewed.
        """
        stuck = {each for each in self._list_claimed() if each.is_stuck(self._max_hang)}
        for each in stuck - self._abandoned:
            _log.critical("a job does not end and is let go", job=each.job.id, reason=each.stop_reason)
            self._guard(lambda job=each.job: self._ledger.losses.let_go(job.id, job.claims))  # type: ignore[misc]
        self._abandoned = stuck
        return [each for each in self._list_claimed() if each not in stuck]

    def _send_reports(self) -> None:
        reports = [report for each in self._list_claimed() if (report := each.take_report())]
        self._ledger.report_all(reports)

    def _note_probes(self, now: float) -> None:
        """Store each probe when it is new, and once a day, because the ledger forgets old ones."""
        if self._is_due("note", now, NOTE_SECONDS):
            self._noted_probes.clear()
        for digest, probe in self._engine.probes().items():
            if self._noted_probes.get(digest) is not probe:
                self._ledger.probes.store(digest, probe)
                self._noted_probes[digest] = probe

    def _beat(self) -> None:
        if not self.stopping:
            process = {"host": socket.gethostname(), "pid": os.getpid(), "running": len(self._claimed)}
            info = {**self._engine.metrics(), **process, "serves": self._serves or None}
            self._ledger.workers.heartbeat(self.worker, info, self._serves)

    def _stop(self, now: float) -> None:
        if self._stopping_since is None:
            self._stopping_since = now
            self._guard(lambda: self._ledger.workers.remove(self.worker))
        for each in self._list_claimed():
            each.request_stop("stopping")
        if now - self._stopping_since > GRACE_SECONDS:
            self._guard(self._release_all)
            self._give_up(0)

    def _release_all(self) -> None:
        """Release all jobs; if the ledger is unreachable, try it only once: their leases expire."""
        for each in self._list_claimed():
            _log.warning("a job did not end in time and goes back to the queue", job=each.job.id)
            each.request_stop("stopping")
            self._ledger.release(each.job.id, each.job.claims)

    def _abandon(self, now: float) -> None:
        """Leave the jobs of a hung engine to other workers; those in the step that hangs are suspects."""
        if self._closed.is_set():
            return
        suspects = self._list_stepping()
        _log.critical(
            "the engine hangs",
            seconds=round(self._monitor.idle_seconds(now), 1),
            jobs=len(self._claimed),
            suspects=suspects,
        )
        self._closed.set()
        self._guard(lambda: self._ledger.losses.lose(self.worker, suspects))
        self._guard(lambda: self._ledger.workers.remove(self.worker))
        self._give_up(1)

    def _list_stepping(self) -> list[str]:
        """The jobs that the engine is at work on."""
        return [
            each.job.id for each in self._list_claimed() if any(map(self._engine.is_stepping, each.tasks))
        ]


class ProgressMonitor:
    """Detects from an engine's step counter whether it makes progress."""

    def __init__(self, engine: WatchedEngine, max_hang: float) -> None:
        self._engine = engine
        self._max_hang = max_hang
        self._steps = -1
        self._progressed_at = time.monotonic()

    def idle_seconds(self, now: float) -> float:
        """Seconds since the engine last finished a step or was idle."""
        steps = self._engine.steps
        if steps != self._steps or not self._engine.busy:
            self._steps, self._progressed_at = steps, now
        return now - self._progressed_at

    def is_hung(self, now: float) -> bool:
        """Whether the engine made no progress for longer than one step may take."""
        return self.idle_seconds(now) > self._max_hang


def build_keeper(
    name: str, ledger: Ledger, engine: WatchedEngine, settings: Settings, renewal: LeaseRenewal
) -> LeaseKeeper:
    """A keeper that ends this process where the engine hangs; if its own threads do, the watchdog does."""
    watchdog = Watchdog(settings.hang)

    def on_tick() -> None:
        watchdog.feed()
        renewal.update(keeper.worker, keeper.claims())

    keeper = LeaseKeeper(name, ledger, engine, settings, give_up=os._exit, on_tick=on_tick)
    return keeper
