"""The one task: a job's id arrives, and somebody runs the job."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from touchstone.ledger.broker import TASK


def register(app: Celery, run: Callable[[str], None]) -> None:
    """Let the application answer the bell with `run`."""
    app.task(run, name=TASK, ignore_result=True)
