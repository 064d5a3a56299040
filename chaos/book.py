"""What the client saw, and what was done to the service: lines of JSON that are on the disk before anything
follows from them.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

What = Literal["attempted", "answered", "ended"]


@dataclass(frozen=True)
class ClientEvent:
    """One thing that a client saw of the request with this key, during a fault."""

    what: What
    key: str
    fault: str
    status: str = ""
    """Of an answer, the HTTP status, or nothing where none came; of an end, how the job ended."""
    job: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class FaultStrike:
    """One strike of a fault, and the time at which it was over: from then on the service could be whole."""

    fault: str
    at: float
    over: float


@dataclass(frozen=True)
class WorkerLoss:
    """A worker that was lost, by its process, and when."""

    pid: int
    at: float


@dataclass(frozen=True)
class Claim:
    """A claim of a job, by which process it was made, and when."""

    job: str
    claim: int
    pid: int
    at: float


@dataclass(frozen=True)
class LastQuery:
    """The last time that a job asked its model, where it was ended early."""

    job: str
    at: float


@dataclass(frozen=True)
class ReceivedMessage:
    """A message that came to a path of the receiver of webhooks, and of which job it told what."""

    message: str
    path: str
    kind: str = ""
    job: str = ""
    genuine: bool = True
    """Whether it was signed as it has to be; one that was not tells nothing."""
    at: float = field(default_factory=time.time)


Line = TypeVar("Line", ClientEvent, FaultStrike, WorkerLoss, Claim, LastQuery, ReceivedMessage)


class Journal:
    """An append-only file of such lines; may be written to from many threads and processes."""

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(
        self, line: ClientEvent | FaultStrike | WorkerLoss | Claim | LastQuery | ReceivedMessage
    ) -> None:
        """Add a line; it is on the disk when this returns."""
        os.write(self._handle, (json.dumps(asdict(line)) + "\n").encode())
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def read(file: Path, kind: type[Line]) -> list[Line]:
    """All lines of a book."""
    return [kind(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
