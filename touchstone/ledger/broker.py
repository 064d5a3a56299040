"""The message that dispatches a job to workers: what service and workers must agree on, without Celery
itself.

The ledger holds the job; a message carries only its id, and the worker that takes it claims the job whose
turn it is. A lost message is sent again; a message too many finds nothing to claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

TASK = "touchstone.run"
QUEUE = "touchstone"
"""The broker's queue for workers that serve all models."""

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
    }
)
"""Celery's settings on both sides."""

_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}


class Sender(Protocol):
    """A Celery application, as far as dispatching a job needs one."""

    def send_task(self, name: str, **options: Any) -> Any:
        """Publish one message."""


def broker_url(url: str) -> str:
    """The ledger's address in the spelling of Celery's transport, which calls unix sockets `redis+socket`."""
    return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url


def queue_name(model: str) -> str:
    """The broker's queue for workers that serve this model and not all."""
    return f"{QUEUE}:{model}"


def dispatch(sender: Sender, job: str, queue: str = QUEUE) -> None:
    """Publish the message of one job, with at most two tries; blocks, so never call it on an event loop."""
    sender.send_task(
        TASK, args=[job], queue=queue, ignore_result=True, retry=True, retry_policy=_RETRY_POLICY
    )
