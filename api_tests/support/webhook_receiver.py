"""A receiver of webhooks on the loopback, which records messages and answers as a test sets it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from api_tests.support.wait import TIMEOUT_SECONDS, wait_until

Action = Callable[["WebhookHandler"], None]


@dataclass(frozen=True)
class Message:
    """A received request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verify(self, secret: str) -> dict[str, Any]:
        """The content, after its signature with this secret was verified."""
        content: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return content


@dataclass
class Receiver:
    port: int = 0
    messages: list[Message] = field(default_factory=list)
    next_actions: list[Action] = field(default_factory=list)
    """Actions for the next requests, instead of answering 204."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int = 1) -> list[Message]:
        """Wait for so many messages; returns all."""
        wait_until(lambda: len(self.messages) >= count)
        return self.messages


class WebhookHandler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_SECONDS

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver.messages.append(Message(self.path, headers, body))
        act = receiver.next_actions.pop(0) if receiver.next_actions else reply_with(204)
        act(self)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def reply_with(status: int, body: bytes = b"", **headers: str) -> Action:
    """Reply with this."""

    def act(handler: WebhookHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def reply_after(until: threading.Event) -> Action:
    """Reply with 204 after this event."""

    def act(handler: WebhookHandler) -> None:
        until.wait(TIMEOUT_SECONDS)
        reply_with(204)(handler)

    return act


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client may go away; that is no error."""


@contextmanager
def serve_in_thread(server: LoopbackServer) -> Iterator[None]:
    """Run a server during the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    server = LoopbackServer(("127.0.0.1", 0), WebhookHandler)
    receiver = Receiver(port=server.server_address[1])
    server.receiver = receiver  # type: ignore[attr-defined]
    with serve_in_thread(server):
        yield receiver
