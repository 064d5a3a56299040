"""The faults: each is injected into the service, and ends again."""

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
"""A worker whose step takes too long must end within this time after the limit."""
EXTRA_MESSAGES = 3
"""How often each dispatch message is duplicated."""


@dataclass(frozen=True)
class Fault:
    """How a fault is injected, how often in a short campaign, and what its recovery is measured by: the next
    claim of a job whose worker was lost, or the next claim of any job after the fault.
    """

    name: str
    times: int
    strike: Strike
    recovery: Literal["claimed again", "next claim"] = "next claim"


def _kill_worker(site: Site) -> None:
    """Kill one of at least two, so that another can take its jobs."""
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
    """Crash the first process that reaches the next point."""
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
    """Suspend a worker until another has its jobs, then let it continue."""
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
    """One engine hangs, and a step of another holds the interpreter lock: both workers must end."""
    wait_until(site.all_alive)
    before = {process.pid for process in site.workers}
    for trap in (traps.HANG, traps.SEIZE):
        traps.arm(trap, site.home)
    timeout = site.settings.hang + NOTICED_SECONDS
    wait_until(lambda: len(before - {process.pid for process in site.workers}) == 2, timeout)


def _run_out_of_memory(site: Site) -> None:
    """A step cannot allocate memory; and a worker that has just started cannot grow."""
    traps.arm(traps.NO_MEMORY, site.home)
    wait_until(lambda: not traps.is_armed(traps.NO_MEMORY, site.home))
    with _limit_resource(_replace_worker(site).pid, resource.RLIMIT_AS, 0):
        time.sleep(0.5)


def _replace_worker(site: Site) -> BaseProcess:
    """A worker that has just replaced another."""
    before = {process.pid for process in site.workers}
    _end(site.any_worker(), signal.SIGTERM)
    wait_until(lambda: any(process.pid not in before for process in site.workers) and site.all_alive())
    return next(process for process in site.workers if process.pid not in before)


@contextmanager
def _limit_resource(pid: int | None, limit: int, soft: int) -> Iterator[None]:
    """Limit a resource of a process, if it is still alive."""
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
    """No file of any process can grow, logs included. Blobs are refused; Valkey exits, because it cannot sync
    its writes. If the blobs have a small disk, that is filled too.
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
    """Start a worker whose clock is two hours ahead."""
    site.clock = AHEAD_SECONDS
    _replace_worker(site)
    site.clock = 0.0
    time.sleep(1)


def _dispatch_too_often(site: Site) -> None:
    dispatch = open_dispatch(site.ledger)
    for job in TenantLedger.of(site.ledger, LOCAL).find(limit=20).jobs:
        for _ in range(EXTRA_MESSAGES):
            dispatch(job.id)


def _lose_messages(site: Site) -> None:
    """Delete the broker's list again and again; the ledger's keys, on the same server, stay."""
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
