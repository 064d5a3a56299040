"""The process of suspects: jobs whose worker was lost run here among their like, ever fewer together.

So a job that ends its worker ends others of its kind at most, while the worker goes on with the rest.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.losses import COHORTS
from touchstone.logs import get_logger
from touchstone.models.store import ZOO, ModelStore
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from workers.engine import StoppableEngine
from workers.execution import RunJob
from workers.lease_keeper import LeaseKeeper, build_keeper
from workers.lease_renewal import LeaseRenewal
from workers.runner import Runner

IDLE_SECONDS = 60.0
CHECK_SECONDS = 0.2

_log = get_logger("quarantine")


def serve_quarantine(
    name: str,
    settings: Settings,
    engine: StoppableEngine,
    run: RunJob,
    store: ModelStore = ZOO,
    *,
    renewal: LeaseRenewal,
) -> int:
    """Run suspects as the worker `name` until there have been none for a minute, or SIGTERM; returns the exit
    code.
    """
    settings = settings.model_copy(update={"concurrency": max(COHORTS.values())})
    blobs = open_blobs(settings)
    ledger = Ledger(ledger_url(settings), settings, blobs)
    keeper = build_keeper(name, ledger, engine, settings, renewal)
    runner = Runner(ledger, blobs, keeper, run, settings, store)

    def stop(_signal: int, _frame: object) -> None:
        keeper.stopping = True

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    keeper.start()
    _log.info("ready", worker=name)
    _run_cohorts(ledger, keeper, runner)
    keeper.close()
    renewal.close()
    runner.trials.spare.stop()
    engine.stop()
    ledger.close()
    return 0


def _run_cohorts(ledger: Ledger, keeper: LeaseKeeper, runner: Runner) -> None:
    """Run a cohort of each level in turn, as long as any suspects wait."""
    idle_since = time.monotonic()
    while not keeper.stopping and time.monotonic() - idle_since < IDLE_SECONDS:
        waiting = _count_waiting(ledger)
        for level, count in sorted(waiting.items()):
            if not keeper.stopping:
                _run_cohort(runner, level, min(count, COHORTS[level]))
                idle_since = time.monotonic()
        if not waiting:
            time.sleep(CHECK_SECONDS)


def _run_cohort(runner: Runner, level: int, size: int) -> None:
    """Run so many suspects of one level together, and wait for all of them."""
    with ThreadPoolExecutor(size, thread_name_prefix="suspect") as pool:
        for run in [pool.submit(partial(runner.run_suspect, level)) for _ in range(size)]:
            run.result()


def _count_waiting(ledger: Ledger) -> dict[int, int]:
    try:
        return ledger.losses.count_waiting()
    except LedgerUnavailable:
        return {}
