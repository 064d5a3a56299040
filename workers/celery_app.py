"""The Celery application of a worker, and its settings."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from touchstone.ledger import broker

_log = logging.getLogger(__name__)


class ReconnectingConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Reconnects to a lost broker within a second; Celery's own delays grow to half a minute."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes, or until a shutdown is requested."""

        def log_error(error: Exception, _pause: float) -> None:
            _log.warning("the broker cannot be reached: %s", error)

        conn.ensure_connection(
            log_error, None, interval_start=0.2, interval_step=0.2, interval_max=1, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return conn


def celery_app(url: str) -> Celery:
    """An application over the ledger's server, without tasks.

    A message is acknowledged before its job starts, and nothing is prefetched: the ledger alone decides which
    worker runs which job. Remote control, events and results are off, because the ledger has that state.
    """
    app = Celery("touchstone", broker=broker.broker_url(url), set_as_current=False)
    app.conf.update(
        **broker.SETTINGS,
        worker_consumer=f"{__name__}:{ReconnectingConsumer.__qualname__}",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_channel_error_retry=True,  # treat a server that refuses writes as unreachable
        broker_transport_options={
            "socket_connect_timeout": 3,
            "socket_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "ack_emulation": False,  # the ledger records who runs what
        },
    )
    return app
