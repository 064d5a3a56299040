"""Named points of the product where a process goes off, once the campaign has armed one.

They are set in the process itself before it begins; the product knows nothing of them. An armed trap is a
file in the home folder; it goes off once, in whichever process comes there first.
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
from touchstone.ledger.ledger import Ledger
from touchstone.storage.blobs import FolderBlobs

FOREVER = 3600


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Never return; other threads go on."""
    time.sleep(FOREVER)


def seize() -> None:
    """Never return, and let no other thread of the process run."""
    ctypes.PyDLL(None).sleep(FOREVER)


def run_out_of_memory() -> None:
    """Fail as an allocation does."""
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
            answer = function(*args, **options)
            if not self.before:
                self._trigger(home)
            return answer

        setattr(self.owner, self.function, trapped)

    def _trigger(self, home: Path) -> None:
        if _take(_file(home, self.name)):
            self.effect()


CRASHES = (
    Trap("claimed", Ledger, "claim", die),
    Trap("computed", workers.__main__, "run", die),
    Trap("stored", FolderBlobs, "put_many", die),
    Trap("finished", Ledger, "finish", die),
)
"""Where a worker dies: what has just happened."""

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
    """Let a trap go off from now on."""
    _file(home, trap.name).touch()


def is_armed(trap: Trap, home: Path) -> bool:
    """Whether it has not gone off yet."""
    return _file(home, trap.name).exists()


def _file(home: Path, name: str) -> Path:
    return home / f"trap-{name}"


def _take(file: Path) -> bool:
    """Whether it was there; it is there no more, and nobody else has taken it."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
