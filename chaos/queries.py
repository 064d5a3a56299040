"""The time of a job's last query, for jobs that end early; recorded inside the engine."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from chaos.journal import Journal, LastQuery
from touchstone.engine.scheduler.batcher import Batcher
from touchstone.engine.scheduler.device_thread import TaskHandle
from touchstone.engine.scheduler.task import Task
from workers.claimed_job import Cancelable, ClaimedJob


def watch(home: Path) -> None:
    """Have the engine of this process write to `queries.jsonl` whenever it ends a task early."""
    journal = Journal(home / "queries.jsonl")
    jobs: WeakKeyDictionary[Task, str] = WeakKeyDictionary()
    last: WeakKeyDictionary[Task, float] = WeakKeyDictionary()
    add_task, deliver, end = ClaimedJob.add_task, Batcher._deliver, Batcher._end

    @wraps(add_task)
    def record_task(self: ClaimedJob, task: Cancelable) -> None:
        if isinstance(task, TaskHandle):
            jobs[task._task] = self.job.id
        add_task(self, task)

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
        (ClaimedJob, "add_task", record_task),
        (Batcher, "_deliver", record_time),
        (Batcher, "_end", record_end),
    ):
        setattr(owner, name, function)
