"""Connections: deadlines for sending a request and for reading the response, and how many may be open."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import problems
from service.http.read_deadline import ReadDeadline
from service.http.strict_heads import StrictReceiveBuffer
from touchstone.logs import get_logger
from touchstone.net.addresses import find_client_network

HEAD_BYTES = 64 * 2**10
HEAD_SECONDS = 10.0
CHECK_SECONDS = 1.0
LINGER_SECONDS = 1.0
"""A connection that is closed at once may discard the response before its client has read it."""

HEALTH_CONNECTIONS = 32
"""Connections over the limit that may ask whether the service is healthy, and nothing else."""

HEALTH_CONNECTIONS_EACH = 4
"""As many of these from one address."""

_HEALTH_CHECK = re.compile(rb"(GET|HEAD) /(healthz|readyz|v2/health/(live|ready)) ")
"""The start of a health check; its request line comes in one piece."""

_UNSENT_BYTES = 128 * 2**10
_log = get_logger("connections")


@dataclass(frozen=True)
class ConnectionLimit:
    """The most open connections, in all and from each address."""

    total: int
    per_address: int


class HttpProtocol(H11Protocol):
    """Closes a connection whose request's head is not complete within `HEAD_SECONDS`, or whose client reads
    too slowly; refuses connections over the limit, but for a few that check the service's health.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _refused = False
    _for_health = False

    def __init__(self, *args: Any, limit: ConnectionLimit, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn._receive_buffer = StrictReceiveBuffer()
        self._limit = limit
        self._deadline = ReadDeadline()
        self._unread, self._checked_at = 0, 0.0
        self._network: str | None = None  # a Unix socket has no addresses

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first request."""
        super().connection_made(transport)
        self._network = find_client_network(self.client[0]) if self.client else None
        _configure_socket(transport.get_extra_info("socket"))
        # Writing pauses as soon as anything is left unsent: each pause means that the client reads slowly.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > 2 * self._limit.total:
            transport.abort()
        elif self._is_over_limit():
            self._reserve_for_health()
        else:
            self._expect_head(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Stop the deadline once a request has begun."""
        if self._for_health and self.cycle is None and not _HEALTH_CHECK.match(data):
            self._refuse()
        if self._refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._cancel_head_timer()

    def on_response_complete(self) -> None:
        """Start the deadline of the next request, unless it has arrived already."""
        before = self.cycle
        if self._for_health:
            self.transport.close()
        super().on_response_complete()
        if self.cycle is before:
            self._expect_head(HEAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP or a head that is too large with a problem, and close the connection."""
        error = sys.exception()
        if getattr(error, "error_status_hint", 400) == 431:
            self._write_problem(
                431, "head_too_large", f"the request's head has more than {HEAD_BYTES:,} bytes"
            )
        else:
            self._write_problem(400, "invalid_http", f"{msg.rstrip('.')}: {str(error).partition(':')[0]}")
        self.transport.close()

    def pause_writing(self) -> None:
        """Start to check how fast the client reads the response."""
        super().pause_writing()
        self._unread, self._checked_at = self.transport.get_write_buffer_size(), self.loop.time()
        self._read_timer = self.loop.call_later(CHECK_SECONDS, self._check_reading)

    def resume_writing(self) -> None:
        """The client has read everything."""
        super().resume_writing()
        self._note_reading()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all deadlines of a closed connection."""
        self._cancel_head_timer()
        self._stop_watching()
        super().connection_lost(exc)

    def _check_reading(self) -> None:
        self._note_reading()
        if self._deadline.left > 0:
            self._read_timer = self.loop.call_later(CHECK_SECONDS, self._check_reading)
        else:
            _log.info("a client reads too slowly", unread=self._unread)
            self.transport.abort()

    def _note_reading(self) -> None:
        unread, now = self.transport.get_write_buffer_size(), self.loop.time()
        # Checks are frequent: a long gap means that the event loop was blocked, not the client.
        self._deadline.spend(min(now - self._checked_at, 2 * CHECK_SECONDS), self._unread - unread)
        self._unread, self._checked_at = unread, now

    def _stop_watching(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _is_over_limit(self) -> bool:
        """Whether this connection exceeds the limits; requests that outlive their connection count too."""
        if max(len(self.connections), len(self.tasks)) > self._limit.total:
            return True
        if self._network is None:
            return False
        return sum(other._network == self._network for other in self._others()) > self._limit.per_address

    def _others(self) -> Iterator[HttpProtocol]:
        """All open connections, with this one."""
        return (other for other in self.connections if isinstance(other, HttpProtocol))

    def _reserve_for_health(self) -> None:
        """Let a connection over the limit send a health check, if it comes soon and few others wait."""
        reserved = [other._network for other in self._others() if other._for_health]
        if len(reserved) < HEALTH_CONNECTIONS and reserved.count(self._network) < HEALTH_CONNECTIONS_EACH:
            self._for_health = True
            self._expect_head(LINGER_SECONDS)
        else:
            self._refuse()

    def _refuse(self) -> None:
        self._refused = True
        detail = "there are too many connections already, in all or from this address; try again soon"
        self._write_problem(503, "too_many_connections", detail, [("Retry-After", "1")])
        self.transport.write_eof()
        self._expect_head(LINGER_SECONDS)

    def _write_problem(
        self, status: int, code: str, detail: str, more: list[tuple[str, str]] | None = None
    ) -> None:
        """Write a problem without calling the application."""
        body = json.dumps(problems.members(status, code, detail, path="/")).encode()
        headers = [
            ("Content-Type", problems.MEDIA_TYPE),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *(more or []),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _expect_head(self, seconds: float) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(seconds, self.transport.close)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()


def _configure_socket(sock: socket.socket) -> None:
    """Set socket options that asyncio does not."""
    if sock.family == socket.AF_UNIX:
        return
    # asyncio does this only where a socket has its protocol number, which inherited ones may lack.
    # Without it a response's body waits 40 ms for the acknowledgment of its head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # By default the system buffers megabytes for a client that reads nothing, which hides that for long.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
