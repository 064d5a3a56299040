"""Traps: named points of the program at which a process fails once the campaign has armed them.

They are set in the process before it runs; the program itself does not know them. An armed trap is a file in
the home folder; it goes off once, in the first process that reaches it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import workers.__main__
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.scheduler.batcher import Batcher
from touchstone.evaluation.run import run_job
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Submission
from touchstone.storage.blobs import FolderBlobs

FOREVER = 3600


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Never return; other threads continue."""
    time.sleep(FOREVER)


def seize() -> None:
    """Never return, and hold the interpreter lock."""
    ctypes.PyDLL(None).sleep(FOREVER)


def run_out_of_memory() -> None:
    """Fail like an allocation."""
    raise MemoryError


@dataclass(frozen=True)
class Trap:
    """What happens right before or after a function of `owner` is called."""

    name: str
    owner: Any
    function: str
    effect: Callable[[], None]
    before: bool = False

    def set(self, home: Path) -> None:
        """Set it in this process."""
        function = getattr(self.owner, self.function)

        @wraps(function)
        def trapped(*args: Any, **options: Any) -> Any:
            if self.before:
                self._trigger(home)
            result = function(*args, **options)
            if not self.before:
                self._trigger(home)
            return result

        setattr(self.owner, self.function, trapped)

    def _trigger(self, home: Path) -> None:
        if _take(_file(home, self.name)):
            self.effect()


POISON_EVERY = 300
"""One job among so many ends each process that runs it."""


def is_poison(seed: int) -> bool:
    """Whether the job with this seed ends its process."""
    return seed % POISON_EVERY == POISON_EVERY // 2


def set_poison() -> None:
    """Have poisons end this process as soon as they run."""

    @wraps(run_job)
    def run_or_die(submission: Submission, *args: Any, **options: Any) -> Any:
        if is_poison(submission.seed):
            die()
        return run_job(submission, *args, **options)

    setattr(workers.__main__, "run_job", run_or_die)  # noqa: B010


CRASHES = (
    Trap("claimed", Ledger, "claim", die),
    Trap("computed", workers.__main__, "run_job", die),
    Trap("stored", FolderBlobs, "put_many", die),
    Trap("finished", Ledger, "finish", die),
)
"""Where a worker dies, by what it has just done."""

API_CRASHES = (Trap("kept", FolderBlobs, "put_many", die), Trap("accepted", Ledger, "accept", die))
"""Where the API dies."""

HANG = Trap("hang", Batcher, "step", hang, before=True)
SEIZE = Trap("seize", Batcher, "step", seize, before=True)
NO_MEMORY = Trap("memory", TorchOracle, "answer", run_out_of_memory, before=True)

WORKER_TRAPS = (*CRASHES, HANG, SEIZE, NO_MEMORY)
API_TRAPS = API_CRASHES


def set_all(traps: Sequence[Trap], home: Path) -> None:
    """Set traps in this process."""
    for trap in traps:
        trap.set(home)


def arm(trap: Trap, home: Path) -> None:
    """Arm a trap."""
    _file(home, trap.name).touch()


def is_armed(trap: Trap, home: Path) -> bool:
    """Whether it has not gone off yet."""
    return _file(home, trap.name).exists()


def _file(home: Path, name: str) -> Path:
    return home / f"trap-{name}"


def _take(file: Path) -> bool:
    """Remove the file; true in the one process that did."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
