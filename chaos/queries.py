"""When a job asked its model for the last time: noted by the engine's own steps, for jobs that end early."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from chaos.book import Journal, LastQuery
from touchstone.engine.scheduler.batcher import Batcher, Task
from touchstone.engine.scheduler.device_thread import TaskHandle
from workers.claimed_job import Cancelable, ClaimedJob


def watch(home: Path) -> None:
    """Let the engine of this process write to `queries.jsonl` whenever it ends a task before its time."""
    journal = Journal(home / "queries.jsonl")
    jobs: WeakKeyDictionary[Task, str] = WeakKeyDictionary()
    last: WeakKeyDictionary[Task, float] = WeakKeyDictionary()
    started, deliver, end = ClaimedJob.add_task, Batcher._deliver, Batcher._end

    @wraps(started)
    def record_task(self: ClaimedJob, task: Cancelable) -> None:
        if isinstance(task, TaskHandle):
            jobs[task._task] = self.job.id
        started(self, task)

    @wraps(deliver)
    def record_time(self: Batcher, task: Task, *answer: Any) -> None:
        last[task] = time.time()
        deliver(self, task, *answer)

    @wraps(end)
    def record_end(self: Batcher, task: Task, error: BaseException) -> None:
        end(self, task, error)
        if task in jobs and task in last:
            with suppress(OSError):
                journal.write(LastQuery(jobs[task], last[task]))

    for owner, name, function in (
        (ClaimedJob, "started", record_task),
        (Batcher, "_deliver", record_time),
        (Batcher, "_end", record_end),
    ):
        setattr(owner, name, function)
