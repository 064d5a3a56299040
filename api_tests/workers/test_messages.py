"""The messages that the ledger writes itself say what Celery and kombu would have written.

`test_workers` has real workers of Celery run them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Queue
from kombu.message import Message

from touchstone.ledger import broker
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Submission
from workers.celery_app import celery_app

OPTIONAL = {"shadow", "group_index", "replaced_task_nesting", "stamped_headers", "stamps"}
"""Headers that a worker reads only where they are there."""


@pytest.fixture
def job(ledger: Ledger, submission: Submission) -> Job:
    return ledger.accept(submission)[0]


@pytest.fixture
def app(valkey: str) -> Celery:
    return celery_app(valkey)


def receive(app: Celery) -> Message:
    with app.connection_for_read() as connection:
        message = Queue(broker.QUEUE, no_declare=True)(connection.channel()).get(no_ack=True)
    assert message is not None
    return message


def normalize(message: Message) -> dict[str, Any]:
    """What a message says, with its ids replaced by how they agree."""
    headers = {name: value for name, value in message.headers.items() if name not in OPTIONAL}
    names = {headers["id"]: "its id"}
    told = {
        name: names.get(value, value) if isinstance(value, str) else value for name, value in headers.items()
    }
    return {
        "headers": told | {"origin": "somebody"},
        "payload": message.decode(),
        "type": (message.content_type, message.content_encoding),
        "correlation": names[message.properties["correlation_id"]],
        "delivery": message.delivery_info,
    }


def test_message_is_decoded_to_what_celery_would_have_sent(ledger: Ledger, job: Job, app: Celery) -> None:
    ledger.dispatch(job.id)
    ours = receive(app)
    app.send_task(broker.TASK, args=[job.id], queue=broker.QUEUE, ignore_result=True)
    assert normalize(ours) == normalize(receive(app))


def test_envelope_has_every_property_that_kombu_gives_it(
    ledger: Ledger, job: Job, app: Celery, server: redis.Redis
) -> None:
    ledger.dispatch(job.id)
    app.send_task(broker.TASK, args=[job.id], queue=broker.QUEUE, ignore_result=True)
    theirs, ours = (json.loads(text) for text in server.lrange(broker.QUEUE, 0, -1))  # type: ignore[union-attr]
    assert ours.keys() == theirs.keys()
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["headers"].keys() == theirs["headers"].keys() - OPTIONAL
    assert ours["body"] == theirs["body"]


def test_no_two_messages_of_a_job_have_the_same_id() -> None:
    tags = [json.loads(broker.build_message("a job"))["properties"]["delivery_tag"] for _ in range(100)]
    assert len(set(tags)) == len(tags)
