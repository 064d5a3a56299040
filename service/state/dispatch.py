"""Sending jobs to the workers: the only place where the service uses Celery."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog
from celery import Celery

from touchstone.ledger import broker
from touchstone.logs import get_logger

STOP_SECONDS = 2.0

_log = get_logger("ringer")


def open_dispatch(url: str, queue_of: Callable[[str], str]) -> Callable[[str], bool]:
    """A function that sends a job's message to the queue of the job, and returns whether the broker accepted
    it.

    It blocks for at most a few seconds, so it belongs on a thread. A message that the broker does not accept
    does no harm: the job is in the ledger, and the reaper sends another.
    """
    app = Celery("touchstone", broker=broker.broker_url(url), set_as_current=False)
    app.conf.update(
        **broker.SETTINGS,
        broker_transport_options={"socket_connect_timeout": 1, "socket_timeout": 1, "socket_keepalive": True},
        broker_connection_timeout=1,
    )
    log = structlog.get_logger("queue")

    def dispatch(job: str) -> bool:
        try:
            broker.dispatch(app, job, queue_of(job))
        except Exception as error:  # noqa: BLE001 - kombu passes on errors of every transport it knows
            log.warning("bell not rung", job=job, reason=f"{type(error).__name__}: {error}")
            return False
        return True

    return dispatch


class Dispatcher:
    """Sends one message after the other. A lost message does no harm: the reaper sends another."""

    def __init__(self, dispatch: Callable[[str], object]) -> None:
        self._dispatch = dispatch
        self._jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is still to be sent, unless that takes too long, then end the thread."""
        self._jobs.put(None)
        self._thread.join(STOP_SECONDS)

    def dispatch(self, job: str) -> None:
        """Send a job's message soon; returns at once."""
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._dispatch(job)
            except Exception as error:  # noqa: BLE001 - the next message must be sent all the same
                _log.warning("a bell was lost", job=job, reason=f"{type(error).__name__}: {error}")
