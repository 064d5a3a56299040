"""Ringing for the workers: the one place where the service knows of Celery."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from celery import Celery

from touchstone.ledger import broker


def open_bell(url: str, queue_of: Callable[[str], str]) -> Callable[[str], bool]:
    """A function that rings for a job, in the queue that is its own, and tells whether the broker took the
    message.

    It blocks for at most a few seconds, so it belongs on a thread. A bell that the broker did not take is no
    loss: the ledger holds the job, and whoever reaps rings again.
    """
    app = Celery("touchstone", broker=broker.broker_url(url), set_as_current=False)
    app.conf.update(
        **broker.SETTINGS,
        broker_transport_options={"socket_connect_timeout": 1, "socket_timeout": 1, "socket_keepalive": True},
        broker_connection_timeout=1,
    )
    log = structlog.get_logger("queue")

    def ring(job: str) -> bool:
        try:
            broker.ring(app, job, queue_of(job))
        except Exception as error:  # noqa: BLE001 - kombu passes on errors of every transport it knows
            log.warning("bell not rung", job=job, reason=f"{type(error).__name__}: {error}")
            return False
        return True

    return ring
