"""What clients saw, and what was done to the service: lines of JSON, each on disk before anything else
happens.
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
    """One step of the request with this key, as its client saw it during a fault."""

    what: What
    key: str
    fault: str
    status: str = ""
    """The HTTP status of a response, empty if none came; or the final status of the job."""
    job: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class FaultStrike:
    """One injection of a fault: when it began, and when it was over, so that the service could recover."""

    fault: str
    at: float
    over: float


@dataclass(frozen=True)
class WorkerLoss:
    """The process of a worker that was lost, and when."""

    pid: int
    at: float


@dataclass(frozen=True)
class Claim:
    """A claim of a job: the process that made it, and when."""

    job: str
    claim: int
    pid: int
    at: float


@dataclass(frozen=True)
class LastQuery:
    """The last query of a job that was ended early."""

    job: str
    at: float


@dataclass(frozen=True)
class ReceivedMessage:
    """A message that arrived at a path of the webhook receiver, with its event and its job."""

    message: str
    path: str
    kind: str = ""
    job: str = ""
    genuine: bool = True
    """Whether its signature is valid; otherwise kind and job are empty."""
    at: float = field(default_factory=time.time)


Line = TypeVar("Line", ClientEvent, FaultStrike, WorkerLoss, Claim, LastQuery, ReceivedMessage)


class Journal:
    """An append-only file of such lines, for many threads and processes."""

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(
        self, line: ClientEvent | FaultStrike | WorkerLoss | Claim | LastQuery | ReceivedMessage
    ) -> None:
        """Append a line; it is on disk when this returns."""
        os.write(self._handle, (json.dumps(asdict(line)) + "\n").encode())
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def read(file: Path, kind: type[Line]) -> list[Line]:
    """All lines of a journal."""
    return [kind(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
