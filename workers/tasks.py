"""The one Celery task: it receives the id of a job and runs the next job of its queue."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from touchstone.ledger.broker import TASK


def register(app: Celery, run: Callable[[str], None]) -> None:
    """Register `run` as the task that dispatch messages call."""
    app.task(run, name=TASK, ignore_result=True)
