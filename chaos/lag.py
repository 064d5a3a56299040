"""How late the API's event loop is: a task in it and a thread beside it want to run every few milliseconds.
The thread shows how late anything is on a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

from service.http.server import Server

EVERY_SECONDS = 0.005
NOTE_SECONDS = 0.25


class LagRecorder:
    """The longest delays of the loop and of a thread since the last note, in seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._worst = {"loop": 0.0, "thread": 0.0}

    def note(self, who: str, delay: float) -> None:
        """Record one delay."""
        self._worst[who] = max(self._worst[who], delay)

    def write(self) -> None:
        """Append a line to the file and reset the maxima."""
        line = json.dumps({"at": time.time(), **self._worst})
        self._worst = dict.fromkeys(self._worst, 0.0)
        with self._file.open("a") as file:
            file.write(line + "\n")


def watch(home: Path) -> None:
    """Have the server of this process write the delays of its loop to `lags.jsonl`."""
    startup = Server.startup
    lags = LagRecorder(home / "lags.jsonl")

    async def start_measuring(self: Server, *args: Any, **options: Any) -> None:
        threading.Thread(target=_measure_thread, args=[lags], daemon=True).start()
        self._lag = asyncio.create_task(_measure_loop(lags))  # type: ignore[attr-defined]  # a reference, or it would be collected
        await startup(self, *args, **options)

    setattr(Server, "startup", start_measuring)  # noqa: B010


async def _measure_loop(lags: LagRecorder) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(EVERY_SECONDS)
        lags.note("loop", time.monotonic() - before - EVERY_SECONDS)


def _measure_thread(lags: LagRecorder) -> None:
    written = time.monotonic()
    while True:
        before = time.monotonic()
        time.sleep(EVERY_SECONDS)
        now = time.monotonic()
        lags.note("thread", now - before - EVERY_SECONDS)
        if now - written > NOTE_SECONDS:
            lags.write()
            written = now


def read(home: Path, since: float = 0.0, until: float = float("inf")) -> list[dict[str, float]]:
    """The notes between two times."""
    lines = (home / "lags.jsonl").read_text().splitlines()
    return [note for note in map(json.loads, lines) if since <= note["at"] <= until]
