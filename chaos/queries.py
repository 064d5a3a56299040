"""When a job asked its model for the last time: noted by the engine's own steps, for jobs that end early."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from chaos.book import Asked, Book
from touchstone.engine.scheduler.batcher import Batcher, Task
from touchstone.engine.scheduler.device_thread import Running
from workers.claimed_job import Cancelable, Held


def watch(home: Path) -> None:
    """Let the engine of this process write to `queries.jsonl` whenever it ends a task before its time."""
    book = Book(home / "queries.jsonl")
    jobs: WeakKeyDictionary[Task, str] = WeakKeyDictionary()
    last: WeakKeyDictionary[Task, float] = WeakKeyDictionary()
    started, deliver, end = Held.started, Batcher._deliver, Batcher._end

    @wraps(started)
    def named(self: Held, task: Cancelable) -> None:
        if isinstance(task, Running):
            jobs[task._task] = self.job.id
        started(self, task)

    @wraps(deliver)
    def timed(self: Batcher, task: Task, *answer: Any) -> None:
        last[task] = time.time()
        deliver(self, task, *answer)

    @wraps(end)
    def noted(self: Batcher, task: Task, error: BaseException) -> None:
        end(self, task, error)
        if task in jobs and task in last:
            with suppress(OSError):
                book.write(Asked(jobs[task], last[task]))

    for owner, name, function in (
        (Held, "started", named),
        (Batcher, "_deliver", timed),
        (Batcher, "_end", noted),
    ):
        setattr(owner, name, function)
