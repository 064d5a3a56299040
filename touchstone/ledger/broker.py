"""The message that dispatches a job to workers: the ledger writes it and Celery reads it, without Celery
itself.

The ledger holds the job; a message carries only its id, and the worker that takes it claims the job whose
turn it is. A lost message is sent again; a message too many finds nothing to claim.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

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
"""A worker's settings of Celery that the messages rely on."""


def broker_url(url: str) -> str:
    """The ledger's address in the spelling of Celery's transport, which calls unix sockets `redis+socket`."""
    return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url


def queue_name(model: str) -> str:
    """The broker's queue for workers that serve this model and not all."""
    return f"{QUEUE}:{model}"


def build_message(job: str) -> str:
    """The message of one job, for the left end of the list that is its queue.

    It is an envelope of kombu's virtual transports around Celery's task message, protocol 2, with what a
    worker reads of them: building it through both takes ten times as long as everything else of a dispatch.
    """
    message = secrets.token_hex(16)
    body = json.dumps([[job], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK,
                "id": message,
                "root_id": message,
                "parent_id": None,
                "group": None,
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
                "argsrepr": repr([job]),
                "kwargsrepr": "{}",
                "origin": "touchstone",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": message,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": message,
            },
        }
    )
