"""The API processes of `touchstone up`: one or several on one address, each checked by itself.

Several share the port by SO_REUSEPORT: the kernel gives each connection to one of them, and none to one that
has ended. Each also listens on a Unix socket of its own, because a health check on the port may reach any.
"""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from touchstone.ledger.address import socket_path
from touchstone.settings import Settings
from touchstone.supervisor.processes import ChildProcess

ANSWER_SECONDS = 5.0
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable for the folder in which several processes add up what they count."""

_SHARED = (
    "connections",
    "connections_each",
    "tenant_streams",
    "tenant_waits",
    "bodies_memory",
    "refused_keys",
)
"""Settings that limit all processes together: each gets an equal share."""

_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where to connect, not to listen


@dataclass(frozen=True)
class ApiPlan:
    """How one API process is started, and where it answers."""

    name: str
    settings: Settings
    arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    socket: Path | None = None

    def request_status(self, path: str, seconds: float) -> int:
        """The status of the answer; raises OSError and HTTPException."""
        connection = self._open_connection(seconds)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def _open_connection(self, seconds: float) -> http.client.HTTPConnection:
        if self.socket is not None:
            return _UnixConnection(self.socket, seconds)
        host = _WILDCARD_HOSTS.get(self.settings.host, self.settings.host)
        return http.client.HTTPConnection(host, self.settings.port, timeout=seconds)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


@dataclass(frozen=True)
class Api:
    """One API process."""

    child: ChildProcess
    plan: ApiPlan

    def is_ready(self) -> bool:
        """Whether it says that jobs can run."""
        try:
            return self.plan.request_status("/readyz", 2) == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def is_silent(self) -> bool:
        """Whether a request times out; an API that refuses or closes connections is starting, stopping or
        overloaded.
        """
        try:
            self.plan.request_status("/healthz", ANSWER_SECONDS)
        except TimeoutError:
            return True
        except (OSError, http.client.HTTPException):
            pass
        return False


def plan_apis(stack: ExitStack, settings: Settings) -> list[ApiPlan]:
    """A plan for each API process of the settings; what they share lasts until the stack is closed."""
    count = settings.api_processes
    if count == 1:
        return [ApiPlan("API", settings)]
    metrics = stack.enter_context(tempfile.TemporaryDirectory(prefix="touchstone-metrics-"))
    folder = socket_path(settings.home).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shares = {name: max(1, getattr(settings, name) // count) for name in _SHARED}
    return [
        ApiPlan(
            f"API {number}",
            settings.model_copy(update=shares),
            ("--private-socket", os.fspath(path)),
            ((METRICS_FOLDER, metrics),),
            path,
        )
        for number in range(1, count + 1)
        for path in [folder / f"api-{number}.sock"]
    ]
