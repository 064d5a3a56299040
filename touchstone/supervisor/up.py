"""`touchstone up`: Valkey, a worker and the API processes, supervised and stopped in order."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from touchstone.errors import LedgerUnavailable, StartError
from touchstone.ledger.address import ledger_url
from touchstone.ledger.api_keys import check_address
from touchstone.ledger.ledger import Ledger
from touchstone.settings import Settings, to_environment
from touchstone.storage.blobs import open_blobs
from touchstone.storage.schema import check_schemas
from touchstone.supervisor.apis import Api, ApiPlan, plan_apis
from touchstone.supervisor.processes import (
    ChildProcess,
    HealthCheck,
    ReportLine,
    Supervised,
    Supervisor,
    ValkeyProcess,
)
from touchstone.supervisor.valkey import exclusive_home

READY_SECONDS = 180.0
PORT_SECONDS = 20.0
DEATHS_AT_START = 3
CHECK_SECONDS = 0.1

# Memory blocks up to this size stay with the process: returning them after each step is slow.
_KEEP_BYTES = str(2**30)
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": _KEEP_BYTES, "MALLOC_TRIM_THRESHOLD_": _KEEP_BYTES}

IsWanted = Callable[[], bool]


def serve(settings: Settings, report: ReportLine, *, worker_module: str = "workers") -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; the exit code is 1 if the service could not be started."""
    report = _tolerate_closed_output(report)
    with _catch_signals() as is_wanted:
        try:
            with run_service(settings, report, is_wanted=is_wanted, worker_module=worker_module) as url:
                report(f"Touchstone serves on {url} (Ctrl-C stops it)")
                while is_wanted():
                    time.sleep(CHECK_SECONDS)
                report("Stopping …")
        except StartError as error:
            report(str(error))
            return 1
        except UnwantedError:
            report("Stopped before it was ready")
    return 0


def _tolerate_closed_output(report: ReportLine) -> ReportLine:
    """The same, but without an error if the terminal or the pipe is closed."""

    def report_line(line: str) -> None:
        with suppress(OSError):
            report(line)

    return report_line


class UnwantedError(Exception):
    """The service was stopped before it was ready."""


@contextmanager
def _catch_signals() -> Iterator[IsWanted]:
    """Yields a function that is true until a signal arrives."""
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield lambda: not received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def run_service(
    settings: Settings,
    report: ReportLine,
    *,
    is_wanted: IsWanted = lambda: True,
    worker_module: str = "workers",
) -> Iterator[str]:
    """Run a service during the block; yields its address once it is ready, and stops it in order.

    A process that dies meanwhile is restarted, and so is an API process that no longer answers. If this
    process is killed, its children end, and the next start adopts the Valkey that keeps running. Raises
    `StartError` if the service does not become ready.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(exclusive_home(settings.home))
        report("Starting …")
        valkey = None if settings.redis_url else _stop_at_exit(stack, ValkeyProcess(settings.home, report))
        _check_ledger(settings)
        port = _find_free_port(settings, wait=valkey is not None and valkey.adopted, is_wanted=is_wanted)
        settings = settings.model_copy(update={"port": port})
        # The API starts last and stops first, so that no job is accepted while the others stop.
        worker = _stop_at_exit(stack, _start_child("worker", worker_module, settings, report))
        apis = [_start_api(stack, plan, report) for plan in plan_apis(stack, settings)]
        processes: list[Supervised] = [worker, *(api.child for api in apis)]
        stack.callback(Supervisor(processes if valkey is None else [valkey, *processes], report).stop)
        _wait_until_ready(settings, worker, apis, is_wanted)
        for api in apis:
            health_check = HealthCheck(api.child, api.is_silent, report)
            stack.callback(health_check.stop)
            health_check.start()
        report(f"Ready after {time.monotonic() - begun:.1f} s")
        yield f"http://{_authority(settings)}"


def _check_ledger(settings: Settings) -> None:
    """Raise `StartError`, before other processes start, if a newer version wrote the data, or if the address
    needs keys that do not exist.
    """
    ledger = Ledger(ledger_url(settings), settings)
    try:
        check_schemas(ledger, open_blobs(settings))
        check_address(settings, ledger.keys)
    except LedgerUnavailable as failure:
        raise StartError(failure.detail) from failure
    finally:
        ledger.close()


C = TypeVar("C", bound=Supervised)


def _stop_at_exit(stack: ExitStack, process: C) -> C:
    stack.callback(process.stop)
    return process


def _start_child(name: str, module: str, settings: Settings, report: ReportLine) -> ChildProcess:
    return ChildProcess(name, [module], to_environment(settings) | _ALLOCATOR, _log(name, settings), report)


def _start_api(stack: ExitStack, plan: ApiPlan, report: ReportLine) -> Api:
    environment = to_environment(plan.settings) | _ALLOCATOR | dict(plan.variables)
    command = ["service", *plan.arguments]
    child = ChildProcess(plan.name, command, environment, _log(plan.name, plan.settings), report)
    return Api(_stop_at_exit(stack, child), plan)


def _log(name: str, settings: Settings) -> Path:
    return settings.home / "logs" / f"{name.lower().replace(' ', '-')}.log"


def _find_free_port(settings: Settings, *, wait: bool, is_wanted: IsWanted) -> int:
    """The port to listen on; with `wait`, the API of an earlier, killed `touchstone up` gets time to end."""
    end = time.monotonic() + (PORT_SECONDS if wait else 0)
    while True:
        try:
            return _bind_port(settings.host, settings.port)
        except OSError as error:
            if time.monotonic() >= end or not is_wanted():
                raise StartError(
                    f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
                    "choose another --port"
                ) from error
            time.sleep(CHECK_SECONDS)


def _bind_port(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _wait_until_ready(
    settings: Settings, worker: ChildProcess, apis: Sequence[Api], is_wanted: IsWanted
) -> None:
    end = time.monotonic() + READY_SECONDS
    ledger = Ledger(ledger_url(settings), settings)
    try:
        while not (_is_worker_ready(ledger, worker) and all(api.is_ready() for api in apis)):
            for child in (worker, *(api.child for api in apis)):
                if child.deaths >= DEATHS_AT_START or time.monotonic() > end:
                    raise StartError(
                        f"the {child.name} did not start; the end of {child.log}:\n{child.read_log_tail()}"
                    )
            if not is_wanted():
                raise UnwantedError
            time.sleep(CHECK_SECONDS)
    finally:
        ledger.close()


def _is_worker_ready(ledger: Ledger, worker: ChildProcess) -> bool:
    """Whether this worker is alive; the ledger may still list one of an earlier start."""
    try:
        return any(alive.info.get("pid") == worker.pid for alive in ledger.workers.alive())
    except LedgerUnavailable:
        return False


def _authority(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"
