"""The receiver of webhooks: verifies each message and writes it to a journal. Some messages it answers with
an error, or too late.
"""

from __future__ import annotations

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from chaos.journal import Journal, ReceivedMessage

OWN, OTHERS = "/own", "/others"
"""The paths for jobs of the campaign's clients, and for those of another tenant."""
REFUSED_SHARE, LATE_SHARE = 0.15, 0.02
"""Shares of the messages that are answered with 500, or after the sender has given up."""
LATE_SECONDS = 3.0


class Receiver:
    """Listens on the loopback; messages must be signed with `secret`."""

    def __init__(self, journal: Journal) -> None:
        self.secret = ""
        self._journal = journal
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.on_message = self._record
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str = OWN) -> str:
        """Where to send messages."""
        return f"http://{self.address}{path}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._journal.close()

    def _record(self, path: str, headers: dict[str, str], body: bytes) -> None:
        message, at = headers.get("webhook-id", ""), time.time()
        try:
            Webhook(self.secret).verify(body, headers)
        except WebhookVerificationError:
            self._journal.write(ReceivedMessage(message, path, genuine=False, at=at))
            return
        event = json.loads(body)
        self._journal.write(ReceivedMessage(message, path, event["type"], event["data"]["id"], at=at))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    on_message: Any

    def handle_error(self, *_: Any) -> None:
        """Senders may be killed; that is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.on_message(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        chance = random.random()
        if chance < LATE_SHARE:
            time.sleep(LATE_SECONDS)
        self.send_response(500 if LATE_SHARE <= chance < LATE_SHARE + REFUSED_SHARE else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """The journal has every message."""
