"""`touchstone up`: Valkey, a worker and the API under one command, looked after and stopped in order."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import TypeVar

from touchstone.errors import LedgerUnavailable, StartError
from touchstone.ledger.address import ledger_url
from touchstone.ledger.api_keys import check_address
from touchstone.ledger.ledger import Ledger
from touchstone.settings import SECRETS, Settings
from touchstone.supervisor.processes import Charge, Checkup, Child, Say, Store, Watcher
from touchstone.supervisor.valkey import sole_use

READY_SECONDS = 180.0
PORT_SECONDS = 20.0
DEATHS_AT_START = 3
LOOK_SECONDS = 0.1
ANSWER_SECONDS = 5.0

# Blocks up to this size stay with the process: giving them back after each step is slow.
_KEEP_BYTES = str(2**30)
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": _KEEP_BYTES, "MALLOC_TRIM_THRESHOLD_": _KEEP_BYTES}

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where to ask, not to listen

Wanted = Callable[[], bool]


def serve(settings: Settings, say: Say, *, worker_module: str = "workers") -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; the exit code is 1 where the service could not be started."""
    say = _to_whoever_listens(say)
    with _listening() as wanted:
        try:
            with running(settings, say, wanted=wanted, worker_module=worker_module) as url:
                say(f"Touchstone serves on {url} (Ctrl-C stops it)")
                while wanted():
                    time.sleep(LOOK_SECONDS)
                say("Stopping …")
        except StartError as error:
            say(str(error))
            return 1
        except UnwantedError:
            say("Stopped before it was ready")
    return 0


def _to_whoever_listens(say: Say) -> Say:
    """The same, though the terminal or the pipe may be gone by now."""

    def tell(line: str) -> None:
        with suppress(OSError):
            say(line)

    return tell


class UnwantedError(Exception):
    """The service was told to stop before it was ready."""


@contextmanager
def _listening() -> Iterator[Wanted]:
    """Whether the service is still wanted: true until a signal says otherwise, however often it says so."""
    asked: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield lambda: not asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def running(
    settings: Settings, say: Say, *, wanted: Wanted = lambda: True, worker_module: str = "workers"
) -> Iterator[str]:
    """A service that is ready, at the address given; stopped in order at the end of the block.

    What dies meanwhile is started again, and so is an API that does not answer any more. Where this process
    is killed, its children end by themselves, and the next start adopts the Valkey that stays. Raises
    `StartError` where the service does not become ready.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(sole_use(settings.home))
        say("Starting …")
        store = None if settings.redis_url else _kept(stack, Store(settings.home, say))
        _check_keys(settings)
        port = _free_port(settings, wait=store is not None and store.adopted, wanted=wanted)
        settings = settings.model_copy(update={"port": port})
        # The last to start is the first to stop, so that nothing is accepted while the others leave.
        worker = _kept(stack, _child("worker", worker_module, settings, say))
        api = _kept(stack, _child("API", "service", settings, say))
        charges: list[Charge] = [worker, api] if store is None else [store, worker, api]
        stack.callback(Watcher(charges, say).stop)
        _wait_until_ready(settings, worker, api, wanted)
        checkup = Checkup(api, lambda: _is_silent(settings), say)
        stack.callback(checkup.stop)
        checkup.start()
        say(f"Ready after {time.monotonic() - begun:.1f} s")
        yield f"http://{_authority(settings)}"


def _check_keys(settings: Settings) -> None:
    """Raise `StartError` before anything else is started that would have to end for it."""
    ledger = Ledger(ledger_url(settings), settings)
    try:
        check_address(settings, ledger.keys)
    except LedgerUnavailable as failure:
        raise StartError(failure.detail) from failure
    finally:
        ledger.close()


C = TypeVar("C", bound=Charge)


def _kept(stack: ExitStack, charge: C) -> C:
    stack.callback(charge.stop)
    return charge


def _child(name: str, module: str, settings: Settings, say: Say) -> Child:
    log = settings.home / "logs" / f"{name.lower()}.log"
    return Child(name, module, _environment(settings) | _ALLOCATOR, log, say)


def _environment(settings: Settings) -> dict[str, str]:
    """This process's environment, secrets included, with exactly these settings."""
    prefix = str(Settings.model_config["env_prefix"])
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SECRETS) or not name.upper().startswith(prefix)
    }
    chosen = settings.model_dump(mode="json", exclude_none=True, exclude={"api_key"})
    return inherited | {f"{prefix}{name.upper()}": str(value) for name, value in chosen.items()}


def _free_port(settings: Settings, *, wait: bool, wanted: Wanted) -> int:
    """The port to listen on; with `wait`, an API that a killed start left behind gets the time to end."""
    end = time.monotonic() + (PORT_SECONDS if wait else 0)
    while True:
        try:
            return _bindable(settings.host, settings.port)
        except OSError as error:
            if time.monotonic() >= end or not wanted():
                raise StartError(
                    f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
                    "choose another --port"
                ) from error
            time.sleep(LOOK_SECONDS)


def _bindable(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _wait_until_ready(settings: Settings, worker: Child, api: Child, wanted: Wanted) -> None:
    end = time.monotonic() + READY_SECONDS
    ledger = Ledger(ledger_url(settings), settings)
    try:
        while not (_works(ledger, worker) and _answers(settings)):
            for child in (worker, api):
                if child.deaths >= DEATHS_AT_START or time.monotonic() > end:
                    raise StartError(
                        f"the {child.name} did not start; the end of {child.log}:\n{child.last_words()}"
                    )
            if not wanted():
                raise UnwantedError
            time.sleep(LOOK_SECONDS)
    finally:
        ledger.close()


def _works(ledger: Ledger, worker: Child) -> bool:
    """Whether this very worker is alive: one of an earlier start may be remembered for a while."""
    try:
        return any(alive.info.get("pid") == worker.pid for alive in ledger.workers())
    except LedgerUnavailable:
        return False


def _answers(settings: Settings) -> bool:
    try:
        return _asked(settings, "/readyz", 2) == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def _is_silent(settings: Settings) -> bool:
    """Whether nothing at all comes back: who refuses or hangs up is starting, ending or crowded."""
    try:
        _asked(settings, "/healthz", ANSWER_SECONDS)
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        pass
    return False


def _asked(settings: Settings, path: str, seconds: float) -> int:
    """The status of the API's answer."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=seconds)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _authority(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"
