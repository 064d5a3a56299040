"""What can go wrong: each fault is one way to strike at the service, and to let go of it again."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Literal

from chaos import disk, traps
from chaos.proxy import Mode, Proxy
from chaos.site import Site, wait_until
from chaos.traps import Trap
from service.state.dispatch import open_dispatch
from touchstone.ledger.broker import QUEUE
from touchstone.ledger.connection import connect
from touchstone.ledger.records import LOCAL
from touchstone.ledger.server import process_id
from touchstone.ledger.tenant_ledger import TenantLedger

Strike = Callable[[Site], None]
AHEAD_SECONDS = 7200.0
NOTICED_SECONDS = 10.0
"""After a step took longer than it may, the worker must be gone within this time."""
EXTRA_MESSAGES = 3
"""How often a bell is rung that is rung too often."""


@dataclass(frozen=True)
class Fault:
    """A way to strike, how often that is done in a short run, and what the way back is measured by: the next
    claim of a job whose worker was lost, or of any job once the service could be whole again.
    """

    name: str
    times: int
    strike: Strike
    recovery: Literal["claimed again", "next claim"] = "next claim"


def _kill_worker(site: Site) -> None:
    """One of at least two: jobs go to the others only where there are others."""
    time.sleep(random.uniform(0, 0.25))
    _end(site.any_worker(of=2), signal.SIGKILL)


def _kill_all_workers(site: Site) -> None:
    wait_until(site.all_alive)
    for process in site.workers:
        process.kill()


def _end(process: BaseProcess, signum: signal.Signals) -> None:
    if process.pid is not None:
        os.kill(process.pid, signum)
    process.join()


def _crash(points: Iterator[Trap], site: Site) -> None:
    """Have whichever process comes there first crash at the next point."""
    trap = next(points)
    traps.arm(trap, site.home)
    wait_until(lambda: not traps.is_armed(trap, site.home))


def _kill_api(site: Site) -> None:
    wait_until(site.is_ready)
    time.sleep(random.uniform(0, 0.1))
    _end(site.api, signal.SIGKILL)


def _end_valkey(signum: signal.Signals, site: Site) -> None:
    time.sleep(random.uniform(0, 0.2))
    site.kill_valkey(signum)


def _cut(mode: Mode, proxy_of: Callable[[Site], Proxy], site: Site) -> None:
    with proxy_of(site).failing(mode):
        time.sleep(random.uniform(0.5, 2))


def _terminate(site: Site) -> None:
    _end(site.any_worker(), signal.SIGTERM)


def _freeze(site: Site) -> None:
    """Let a worker sleep until its jobs are another's, and then go on as if nothing had been."""
    process = site.any_worker()
    site.record_loss(process)
    with _suspend(process):
        time.sleep(1.5 * site.settings.lease + 1)


@contextmanager
def _suspend(process: BaseProcess) -> Iterator[None]:
    pid = process.pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _hang(site: Site) -> None:
    """One engine hangs, and a step of another lets no thread of its process run: both must be noticed."""
    wait_until(site.all_alive)
    before = {process.pid for process in site.workers}
    for trap in (traps.HANG, traps.SEIZE):
        traps.arm(trap, site.home)
    noticed = site.settings.hang + NOTICED_SECONDS
    wait_until(lambda: len(before - {process.pid for process in site.workers}) == 2, noticed)


def _run_out_of_memory(site: Site) -> None:
    """A step that cannot allocate; and a worker that has just begun and may not grow by a byte."""
    traps.arm(traps.NO_MEMORY, site.home)
    wait_until(lambda: not traps.is_armed(traps.NO_MEMORY, site.home))
    with _limit_resource(_replace_worker(site).pid, resource.RLIMIT_AS, 0):
        time.sleep(0.5)


def _replace_worker(site: Site) -> BaseProcess:
    """A worker that took another's place just now."""
    before = {process.pid for process in site.workers}
    _end(site.any_worker(), signal.SIGTERM)
    wait_until(lambda: any(process.pid not in before for process in site.workers) and site.all_alive())
    return next(process for process in site.workers if process.pid not in before)


@contextmanager
def _limit_resource(pid: int | None, limit: int, soft: int) -> Iterator[None]:
    """A process may use so much and no more, if it still lives."""
    if pid is None:
        return
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (soft, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, before)


def _fill_disk(site: Site) -> None:
    """No file of any process may grow, logs included. Blobs are refused; Valkey ends, for it cannot promise
    what it cannot write down. Where blobs have a small disk of their own, that is filled besides.
    """
    with ExitStack() as full:
        for process in (site.api, *site.workers):
            full.enter_context(_limit_resource(process.pid, resource.RLIMIT_FSIZE, 0))
        time.sleep(1)
        full.enter_context(_limit_resource(process_id(site.valkey.url), resource.RLIMIT_FSIZE, 0))
        wait_until(lambda: not site.valkey.is_alive())
    site.restart_valkey()
    if site.blobs.is_mount():
        with disk.fill(site.blobs):
            time.sleep(1)


def _set_clock_ahead(site: Site) -> None:
    """A worker whose clock is two hours ahead takes part in the work."""
    site.clock = AHEAD_SECONDS
    _replace_worker(site)
    site.clock = 0.0
    time.sleep(1)


def _dispatch_too_often(site: Site) -> None:
    dispatch = open_dispatch(site.valkey.url, site.ledger.broker_queue_of)
    for job in TenantLedger.of(site.ledger, LOCAL).find(limit=20).jobs:
        for _ in range(EXTRA_MESSAGES):
            dispatch(job.id)


def _lose_messages(site: Site) -> None:
    """The broker's list is deleted again and again. The ledger's keys, on the same server, are left alone."""
    client = connect(site.valkey.url)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        client.delete(QUEUE)
    client.close()


def _api_proxy(site: Site) -> Proxy:
    return site.api_proxy


def _worker_proxy(site: Site) -> Proxy:
    return site.worker_proxy


def _partitions() -> Iterator[Fault]:
    for who, proxy_of in (("API", _api_proxy), ("workers", _worker_proxy)):
        for mode in Mode:
            if mode is not Mode.PASS:
                yield Fault(f"{who} – ledger: {mode.value}", 1, partial(_cut, mode, proxy_of))


FAULTS = (
    Fault("worker killed at any time", 60, _kill_worker, "claimed again"),
    Fault(
        "worker killed at a named point", 40, partial(_crash, itertools.cycle(traps.CRASHES)), "claimed again"
    ),
    Fault("all workers killed at once", 2, _kill_all_workers, "claimed again"),
    Fault("API killed at any time", 3, _kill_api),
    Fault("API killed at a named point", 4, partial(_crash, itertools.cycle(traps.API_CRASHES))),
    Fault("ledger killed", 20, partial(_end_valkey, signal.SIGKILL)),
    Fault("ledger restarted", 2, partial(_end_valkey, signal.SIGTERM)),
    *_partitions(),
    Fault("dispatch messages duplicated", 1, _dispatch_too_often),
    Fault("dispatch messages deleted", 1, _lose_messages),
    Fault("engine hung, and GIL held", 1, _hang, "claimed again"),
    Fault("out of memory", 1, _run_out_of_memory),
    Fault("disk full", 1, _fill_disk),
    Fault("a worker's clock two hours ahead", 1, _set_clock_ahead),
    Fault("worker told to stop", 2, _terminate, "claimed again"),
    Fault("worker frozen past its lease", 1, _freeze, "claimed again"),
)
