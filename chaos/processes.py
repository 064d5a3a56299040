"""The service's processes, forked from one that has everything imported, so that a start takes a fraction of
a second.

They run the programs of `touchstone up`, `python -m service` and `python -m workers`, with traps set, and
mark what they write with the number of the claim.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import service.__main__
import workers.__main__
from chaos import lag, queries, traps
from chaos.journal import Claim, Journal
from touchstone.engine.oracles import probe
from touchstone.ledger.ledger import Ledger, ProgressReport
from touchstone.ledger.records import Job
from touchstone.ledger.webhooks import dispatcher, outbox, signatures
from touchstone.settings import Settings, to_environment

SHORT_DELAYS = {
    (signatures, "RETRY_DELAYS"): (1,) * 9,
    (dispatcher, "ANSWER_SECONDS"): 2.0,
    (outbox, "LEASE_SECONDS"): 5.0,
}
"""Delays of webhook deliveries; the real ones take three days."""

_ROOT = str(Path(__file__).parents[1])
CLAIM = "claim"
"""The key in a job's result and metrics with the claim under which they were written."""


@dataclass(frozen=True)
class ServiceProgram:
    """One of the service's programs, as the campaign starts it."""

    name: str
    main: Callable[[], int | None]
    prepare: Callable[[Settings], None]


def start(program: ServiceProgram, settings: Settings, *, clock: float = 0.0) -> BaseProcess:
    """Start a process of the program whose clock is `clock` seconds ahead."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([__name__])
    process = forking.Process(target=_run, args=[program.name, settings, clock], name=program.name)
    process.start()
    return process


def _run(name: str, settings: Settings, clock: float) -> None:
    program = PROGRAMS[name]
    log = os.open(settings.home / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(to_environment(settings))
    # A process of suspects is started from nothing, and this package is not installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    if clock:
        _set_clock_ahead(clock)
    program.prepare(settings)
    sys.exit(program.main())


def _set_clock_ahead(seconds: float) -> None:
    """Set the wall clock of this process wrong."""
    real = time.time
    time.time = lambda: real() + seconds


def _prepare_worker(settings: Settings) -> None:
    _prepare_quarantine(settings)
    traps.set_all(traps.WORKER_TRAPS, settings.home)


def _prepare_quarantine(settings: Settings) -> None:
    """Only a poison ends it: what else ends it ends its worker."""
    # A worker that lives for a second has no time to measure the best batch size of its device.
    probe.measure_gradient_rates = lambda *_, **__: {1: 100.0, 32: 1000.0}
    queries.watch(settings.home)
    _mark_claims()
    _record_claims(Journal(settings.home / "claims.jsonl"))
    traps.set_poison()


def _mark_claims() -> None:
    """Add its claim to every report and every result."""
    finish, report_all = Ledger.finish, Ledger.report_all

    @wraps(finish)
    def marked_finish(self: Ledger, job: str, attempt: int, **end: Any) -> bool:
        if end.get("result") is not None:
            end["result"] = {**end["result"], CLAIM: attempt}
        return finish(self, job, attempt, **end)

    @wraps(report_all)
    def marked_reports(self: Ledger, reports: list[ProgressReport]) -> list[bool]:
        return report_all(
            self, [(job, claim, step, {**(more or {}), CLAIM: claim}) for job, claim, step, more in reports]
        )

    # setattr, because mypy refuses to assign to methods.
    setattr(Ledger, "finish", marked_finish)  # noqa: B010
    setattr(Ledger, "report_all", marked_reports)  # noqa: B010


def _record_claims(journal: Journal) -> None:
    claim = Ledger.claim

    @wraps(claim)
    def record_claim(self: Ledger, job: str, worker: str, **options: Any) -> Job | None:
        claimed = claim(self, job, worker, **options)
        if claimed is not None:
            with suppress(OSError):  # the disk may be full, as part of the campaign
                journal.write(
                    Claim(claimed.id, claimed.claims, os.getpid(), time.clock_gettime(time.CLOCK_REALTIME))
                )
        return claimed

    setattr(Ledger, "claim", record_claim)  # noqa: B010


def _prepare_api(settings: Settings) -> None:
    lag.watch(settings.home)
    for (module, name), value in SHORT_DELAYS.items():
        getattr(module, name)  # fails if it was renamed
        setattr(module, name, value)
    traps.set_all(traps.API_TRAPS, settings.home)


WORKER = ServiceProgram("worker", partial(workers.__main__.main, module="chaos.quarantine"), _prepare_worker)
QUARANTINE = ServiceProgram("quarantine", lambda: workers.__main__.main(sys.argv[1:]), _prepare_quarantine)
API = ServiceProgram("api", service.__main__.main, _prepare_api)
PROGRAMS = {program.name: program for program in (WORKER, API)}
