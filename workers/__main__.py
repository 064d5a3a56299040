"""`python -m workers`: run jobs on one device until stopped; with `--quarantine NAME`, suspects alone."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from touchstone import logs
from touchstone.engine import Engine, RemoteAccess
from touchstone.errors import Failure, LedgerUnavailable, StartError
from touchstone.evaluation.run import run_job
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.logs import get_logger
from touchstone.memory import limit_memory
from touchstone.net.outbound import OutboundClient
from touchstone.settings import Settings, read_secret
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import open_registered_store
from touchstone.storage.schema import check_schemas
from workers.lease_renewal import LeaseRenewal
from workers.quarantine import serve_quarantine
from workers.serve import serve

RETRY_SECONDS = 1.0

_log = get_logger("worker")


def warm_up(engine: Engine, models: Sequence[str]) -> None:
    """Load models before their first query; one that cannot be loaded yet is loaded at its first query."""
    for model in models:
        try:
            with engine.models.acquire(engine.store.manifest(model)):
                _log.info("loaded", model=model)
        except Failure as failure:
            _log.warning("not loaded", model=model, reason=failure.detail)


def check_data(settings: Settings) -> None:
    """Wait until the ledger can be reached; raises StartError where a newer version wrote the data."""
    ledger = Ledger(ledger_url(settings), settings)
    try:
        while True:
            try:
                return check_schemas(ledger, open_blobs(settings))
            except LedgerUnavailable as failure:
                _log.warning("waiting for the ledger", reason=failure.detail)
                time.sleep(RETRY_SECONDS)
    finally:
        ledger.close()


def main(arguments: Sequence[str] = (), *, module: str = "workers") -> int:
    """Read the settings, check the data, start the engine, and serve; `module` is run again for suspects.
    Returns 1 where the data cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--quarantine", metavar="NAME", help="run jobs whose worker was lost, for a worker")
    name, settings = parser.parse_args(arguments).quarantine, Settings()
    logs.configure(settings.log_level)
    try:
        check_data(settings)
    except StartError as error:
        _log.error("not started", reason=str(error))
        return 1
    renewal = LeaseRenewal(settings)
    store = open_registered_store(settings)
    ledger = Ledger(ledger_url(settings), settings)
    remote_access = RemoteAccess(OutboundClient(settings.outgoing_allow), ledger.query_budget, read_secret)
    engine = Engine(settings.device, settings.memory_budget, store, remote_access)
    if settings.worker_memory is not None:
        means = limit_memory(settings.worker_memory, device=engine.device.type)
        _log.info("memory limited", bytes=settings.worker_memory, means=means)
    run = partial(run_job, engine=engine)
    if name:
        return serve_quarantine(name, settings, engine, run, store, renewal=renewal)
    threading.Thread(
        target=warm_up, args=(engine, settings.served_models), name="warm-up", daemon=True
    ).start()
    return serve(settings, engine, run, store, renewal=renewal, module=module)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
