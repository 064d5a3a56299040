"""The child processes of `touchstone up`, and the threads that restart them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from touchstone.periodic import PeriodicThread
from touchstone.supervisor import valkey
from touchstone.supervisor.child import close_input, start_child, stop_child
from touchstone.supervisor.work_meter import WorkMeter

LOG_BYTES = 10 * 2**20
CHECK_SECONDS = 0.1
RESTART_SECONDS = 20.0
MIN_PAUSE, MAX_PAUSE, STABLE_SECONDS = 0.5, 15.0, 30.0
HEALTH_CHECK_SECONDS = 5.0
MAX_TIMEOUTS = 4
BUSY_SHARE = 0.1
"""Of one processor: a process that has used less since the last check does not work. An idle API uses some
hundredths; one that is busy on a machine with five times too much to do, a fifth.
"""

BUSY_PATIENCE = 8
"""A timeout of a process that works counts for one of so many: it is ended after some five minutes."""

ReportLine = Callable[[str], object]
"""Shows one line to the operator."""


class Supervised(Protocol):
    """A process under supervision."""

    def ensure_running(self) -> None:
        """Restart it if it died; returns soon."""

    def stop(self) -> None:
        """Stop it in order, and by force if that takes too long."""


class ChildProcess:
    """A Python module with its arguments in a child process that writes a log; it ends when this process
    does.
    """

    def __init__(
        self,
        name: str,
        module: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        report: ReportLine,
    ) -> None:
        self.name = name
        self.log = log
        self.deaths = 0
        self._command = list(module)
        self._environment = dict(environment)
        self._report = report
        self._next_restart_pause = MIN_PAUSE
        self._restart_at: float | None = None
        self._start()

    @property
    def pid(self) -> int:
        """The present process id."""
        return self._process.pid

    def _start(self) -> None:
        self._started_at = time.monotonic()
        with _open_log(self.log) as log:
            self._process = start_child(self._command, self._environment, log)

    def ensure_running(self) -> None:
        """Restart it if it died, after a pause that grows if it keeps dying."""
        if self._process.poll() is None:
            return
        now = time.monotonic()
        if self._restart_at is None:
            self._restart_at = now + self._schedule_restart(now)
        elif now >= self._restart_at:
            self._restart_at = None
            close_input(self._process)
            self._start()

    def _schedule_restart(self, now: float) -> float:
        self.deaths += 1
        pause = MIN_PAUSE if now - self._started_at > STABLE_SECONDS else self._next_restart_pause
        self._next_restart_pause = min(2 * pause, MAX_PAUSE)
        self._report(
            f"The {self.name} ended with code {self._process.returncode}; starting it again in {pause:g} s"
        )
        return pause

    def kill(self) -> None:
        """End it by force; `ensure_running` restarts it."""
        self._process.kill()

    def stop(self, *, timeout: float = 13.0) -> None:
        """See `Supervised.stop`."""
        stop_child(self._process, timeout=timeout)

    def read_log_tail(self) -> str:
        """The end of its log, for error messages."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-5:])


def _open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; a large one is moved away first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


class ValkeyProcess:
    """The embedded Valkey."""

    def __init__(self, home: Path, report: ReportLine) -> None:
        self._home = home
        self._report = report
        self._valkey = valkey.start(home)
        self.adopted = self._valkey.child is None

    def ensure_running(self) -> None:
        """Restart it if it died; its file has every accepted job."""
        if not self._valkey.is_alive():
            self._report("Valkey ended; starting it again")
            self._valkey = valkey.start(self._home, timeout=RESTART_SECONDS)

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._valkey.stop()


class HealthCheck(PeriodicThread):
    """Checks a child periodically, and kills it if it is alive but does not answer.

    One that works meanwhile is busy rather than hung, and gets `BUSY_PATIENCE` times as long. One that works
    for longer than that without an answer is in an endless loop.
    """

    def __init__(self, child: ChildProcess, is_silent: Callable[[], bool], report: ReportLine) -> None:
        super().__init__("checkup", self._check, HEALTH_CHECK_SECONDS)
        self._child = child
        self._is_silent = is_silent
        self._report = report
        self._meter = WorkMeter(child)
        self._timeouts = 0.0

    def _check(self) -> None:
        silent, works = self._is_silent(), self._meter.take_share() >= BUSY_SHARE
        self._timeouts = self._timeouts + (1 / BUSY_PATIENCE if works else 1) if silent else 0.0
        if self._timeouts >= MAX_TIMEOUTS:
            self._timeouts = 0.0
            self._report(f"The {self._child.name} is there and does not answer; ending it")
            self._child.kill()


class Supervisor:
    """A thread that restarts processes until it is stopped."""

    def __init__(self, processes: Sequence[Supervised], report: ReportLine) -> None:
        self._processes = processes
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; from then on nothing is restarted."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_SECONDS):
            for process in self._processes:
                self._check(process)

    def _check(self, process: Supervised) -> None:
        try:
            process.ensure_running()
        except Exception as error:  # noqa: BLE001 - the other processes must still be checked
            self._report(f"Not started again: {error}")
