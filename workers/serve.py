"""A worker process: one engine, one lease keeper, and Celery's thread pool around them."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from typing import Any

from celery import Celery, signals

from touchstone.ledger import broker
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.reaper import Reaper
from touchstone.logs import get_logger
from touchstone.models.store import ZOO, ModelStore
from touchstone.periodic import PeriodicThread
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from workers.celery_app import celery_app
from workers.engine import StoppableEngine
from workers.execution import RunJob
from workers.lease_keeper import LeaseKeeper, build_keeper
from workers.lease_renewal import LeaseRenewal
from workers.quarantine_process import QuarantineProcess
from workers.runner import Runner
from workers.tasks import register

# A consumer that sleeps because the pool is full wakes only for a timer.
WAKE_SECONDS = 0.05

_log = get_logger("worker")


def serve(
    settings: Settings,
    engine: StoppableEngine,
    run: RunJob,
    store: ModelStore = ZOO,
    *,
    renewal: LeaseRenewal,
    module: str = "workers",
) -> int:
    """Run jobs until SIGTERM or SIGINT; returns the exit code. `module` is run again for suspects."""
    url = ledger_url(settings)
    blobs = open_blobs(settings)
    ledger = Ledger(url, settings, blobs)
    app = celery_app(url)
    keeper = build_keeper(_make_worker_name(), ledger, engine, settings, renewal)
    reaper = Reaper(ledger, ledger.dispatch)
    runner = Runner(ledger, blobs, keeper, run, settings, store)
    quarantine = QuarantineProcess(keeper.worker, ledger, settings, module)
    register(app, runner.__call__)
    _connect_signals(keeper, reaper, quarantine)
    code = _consume(app, settings, runner.slots.total)
    reaper.stop()
    quarantine.stop()
    keeper.close()
    renewal.close()
    runner.trials.spare.stop()
    engine.stop()
    ledger.close()
    return code


def _make_worker_name() -> str:
    """A name unique to this process, so that no successor has the same."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _connect_signals(keeper: LeaseKeeper, *threads: PeriodicThread) -> None:
    """Start and stop with Celery: when it begins to consume, and when it shuts down."""

    def ready(sender: Any, **_: Any) -> None:
        sender.timer.call_repeatedly(WAKE_SECONDS, lambda: None)
        # Ctrl-C stops the worker in order, like SIGTERM.
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
        keeper.start()
        for thread in threads:
            thread.start()
        _log.info("ready", worker=keeper.worker)

    def shutting_down(**_: Any) -> None:
        keeper.stopping = True

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.setup_logging.connect(_keep_own_logs, weak=False)


def _keep_own_logs(**_: Any) -> None:
    """Keep our log configuration, without Celery's line for each message: the runner's lines name jobs."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _consume(app: Celery, settings: Settings, slots: int) -> int:
    worker = app.Worker(
        pool="threads",
        concurrency=slots,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        queues=[broker.queue_name(model) for model in settings.served_models] or None,
        quiet=True,
    )
    worker.start()
    return worker.exitcode or 0
