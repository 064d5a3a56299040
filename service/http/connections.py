"""One connection: how long its client may take to ask and to read, and how many connections there may be."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import problems
from service.http.read_deadline import ReadDeadline
from touchstone.logs import get_logger

HEAD_BYTES = 64 * 2**10
HEAD_SECONDS = 10.0
CHECK_SECONDS = 1.0
LINGER_SECONDS = 1.0
"""A connection that is closed at once takes the answer with it that its client was to read."""

_UNSENT_BYTES = 128 * 2**10
_log = get_logger("connections")


@dataclass(frozen=True)
class ConnectionLimit:
    """How many connections there may be, in all and from each address."""

    total: int
    per_address: int


class HttpProtocol(H11Protocol):
    """Closes a connection whose request's head has not come within `HEAD_SECONDS`, or whose client reads too
    slowly; turns those away that are too many.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _refused = False

    def __init__(self, *args: Any, limit: ConnectionLimit, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limit = limit
        self._deadline = ReadDeadline()
        self._unread, self._checked_at = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        _configure_socket(transport.get_extra_info("socket"))
        # Writing pauses as soon as anything is left unsent: each pause tells of a client that reads slowly.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > 2 * self._limit.total:
            transport.abort()
        elif self._is_over_limit():
            self._refuse()
        else:
            self._expect_head(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Stop the clock once a request has begun."""
        if self._refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._cancel_head_timer()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, unless it is there already."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before:
            self._expect_head(HEAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Say as a problem that this is not HTTP, or too much of it, and hang up."""
        error = sys.exception()
        if getattr(error, "error_status_hint", 400) == 431:
            self._write_problem(
                431, "head_too_large", f"the request's head has more than {HEAD_BYTES:,} bytes"
            )
        else:
            self._write_problem(400, "invalid_http", f"{msg.rstrip('.')}: {str(error).partition(':')[0]}")
        self.transport.close()

    def pause_writing(self) -> None:
        """Begin to watch how the client reads what it asked for."""
        super().pause_writing()
        self._unread, self._checked_at = self.transport.get_write_buffer_size(), self.loop.time()
        self._read_timer = self.loop.call_later(CHECK_SECONDS, self._check_reading)

    def resume_writing(self) -> None:
        """The client has taken everything."""
        super().resume_writing()
        self._note_reading()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
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
        # We look often: if it has been long, it is we who stood still.
        self._deadline.spend(min(now - self._checked_at, 2 * CHECK_SECONDS), self._unread - unread)
        self._unread, self._checked_at = unread, now

    def _stop_watching(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _is_over_limit(self) -> bool:
        """Whether there are too many connections with this one, or requests: some outlive theirs."""
        if max(len(self.connections), len(self.tasks)) > self._limit.total:
            return True
        if self.client is None:  # a socket of the file system has no addresses
            return False
        hosts = [
            other.client[0] for other in self.connections if isinstance(other, HttpProtocol) and other.client
        ]
        return hosts.count(self.client[0]) > self._limit.per_address

    def _refuse(self) -> None:
        self._refused = True
        detail = "there are too many connections already, in all or from this address; try again soon"
        self._write_problem(503, "too_many_connections", detail, [("Retry-After", "1")])
        self.transport.write_eof()
        self._expect_head(LINGER_SECONDS)

    def _write_problem(
        self, status: int, code: str, detail: str, more: list[tuple[str, str]] | None = None
    ) -> None:
        """Write a problem without the application."""
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
    """Set what asyncio does not."""
    if sock.family == socket.AF_UNIX:
        return
    # asyncio does this only where a socket knows its protocol's number, as inherited ones may not.
    # Without it an answer's body waits 40 ms for the acknowledgement of its head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The system takes megabytes for a client that reads none of them, and then says nothing for long.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
