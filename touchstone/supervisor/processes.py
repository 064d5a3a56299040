"""What `touchstone up` looks after: processes that start again when they die and leave when told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from touchstone.periodic import Rounds
from touchstone.supervisor import valkey

LOG_BYTES = 10 * 2**20
LOOK_SECONDS = 0.1
RESTART_SECONDS = 20.0
FIRST_PAUSE, LONGEST_PAUSE, SETTLED = 0.5, 15.0, 30.0
ASK_SECONDS = 5.0
SILENCES = 4

Say = Callable[[str], object]
"""Tells the operator one line."""


class Charge(Protocol):
    """Something to look after."""

    def look(self) -> None:
        """Start it again if it is gone; returns soon."""

    def stop(self) -> None:
        """End it in order, and by force where that takes too long."""


class Child:
    """A Python module that runs as a process of its own and writes a log; it ends when this process does."""

    def __init__(self, name: str, module: str, environment: Mapping[str, str], log: Path, say: Say) -> None:
        self.name = name
        self.log = log
        self.deaths = 0
        self._command = [sys.executable, "-P", "-m", "touchstone.supervisor.child", module]
        self._environment = dict(environment)
        self._say = say
        self._pause = FIRST_PAUSE
        self._start_at: float | None = None
        self._start()

    @property
    def pid(self) -> int:
        """The process id of its present life."""
        return self._process.pid

    def _start(self) -> None:
        self._born = time.monotonic()
        with _open_log(self.log) as log:
            # A session of its own: Ctrl-C in the terminal is for us, and we stop our children in order.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look(self) -> None:
        """Start it again if it died, after a pause that grows while it keeps dying."""
        if self._process.poll() is None:
            return
        now = time.monotonic()
        if self._start_at is None:
            self._start_at = now + self._next_pause(now)
        elif now >= self._start_at:
            self._start_at = None
            self._close()
            self._start()

    def _next_pause(self, now: float) -> float:
        self.deaths += 1
        pause = FIRST_PAUSE if now - self._born > SETTLED else self._pause
        self._pause = min(2 * pause, LONGEST_PAUSE)
        self._say(
            f"The {self.name} ended with code {self._process.returncode}; starting it again in {pause:g} s"
        )
        return pause

    def kill(self) -> None:
        """End it by force; `look` starts it again."""
        self._process.kill()

    def stop(self, *, patience: float = 13.0) -> None:
        """See `Charge.stop`."""
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def last_words(self) -> str:
        """The end of its log, for an error that says why."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-5:])


def _open_log(path: Path) -> IO[bytes]:
    """A log to append to; one that grew large makes place for a new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


class Store:
    """The embedded Valkey."""

    def __init__(self, home: Path, say: Say) -> None:
        self._home = home
        self._say = say
        self._valkey = valkey.start(home)
        self.adopted = self._valkey.child is None

    def look(self) -> None:
        """Start it again if it died; its file holds every accepted job."""
        if not self._valkey.alive():
            self._say("Valkey ended; starting it again")
            self._valkey = valkey.start(self._home, patience=RESTART_SECONDS)

    def stop(self) -> None:
        """See `Charge.stop`."""
        self._valkey.stop()


class Checkup(Rounds):
    """Asks a child again and again, and ends one that keeps silent although it lives."""

    def __init__(self, child: Child, is_silent: Callable[[], bool], say: Say) -> None:
        super().__init__("checkup", self._ask, ASK_SECONDS)
        self._child = child
        self._is_silent = is_silent
        self._say = say
        self._silences = 0

    def _ask(self) -> None:
        self._silences = self._silences + 1 if self._is_silent() else 0
        if self._silences == SILENCES:
            self._silences = 0
            self._say(f"The {self._child.name} is there and does not answer; ending it")
            self._child.kill()


class Watcher:
    """A thread that looks after all charges until it is stopped."""

    def __init__(self, charges: Sequence[Charge], say: Say) -> None:
        self._charges = charges
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread: from here on, what dies stays dead."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for charge in self._charges:
                self._look(charge)

    def _look(self, charge: Charge) -> None:
        try:
            charge.look()
        except Exception as error:  # noqa: BLE001 - the others are to be looked after all the same
            self._say(f"Not started again: {error}")
