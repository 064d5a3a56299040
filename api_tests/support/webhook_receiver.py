"""A receiver of webhooks on loopback, which keeps what it got and answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from api_tests.support.wait import SECONDS, wait_until

Act = Callable[["Handler"], None]


@dataclass(frozen=True)
class Message:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """What it says, once a signature of this secret was found on it."""
        told: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return told


@dataclass
class Receiver:
    port: int = 0
    messages: list[Message] = field(default_factory=list)
    plan: list[Act] = field(default_factory=list)
    """What it does with the next requests instead of answering 204."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int = 1) -> list[Message]:
        """The messages, once there are so many."""
        wait_until(lambda: len(self.messages) >= count)
        return self.messages


class Handler(BaseHTTPRequestHandler):
    timeout = SECONDS

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver.messages.append(Message(self.path, headers, body))
        act = receiver.plan.pop(0) if receiver.plan else answering(204)
        act(self)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def answering(status: int, body: bytes = b"", **headers: str) -> Act:
    """Answer so."""

    def act(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def hanging(until: threading.Event) -> Act:
    """Answer only then."""

    def act(handler: Handler) -> None:
        until.wait(SECONDS)
        answering(204)(handler)

    return act


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def listening(server: Server) -> Iterator[None]:
    """Let a server answer while the block lasts."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def receiving() -> Iterator[Receiver]:
    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(port=server.server_address[1])
    server.receiver = receiver  # type: ignore[attr-defined]
    with listening(server):
        yield receiver
