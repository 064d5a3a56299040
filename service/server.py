"""uvicorn, and two things that it lacks: a time limit for a request's head, and an end without waiters."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import problems
from service.backend import Backend
from touchstone.settings import Settings

HEAD_SECONDS = 10.0
END_SECONDS = 10


class Protocol(H11Protocol):
    """Closes a connection whose request's head has not come within `HEAD_SECONDS`."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        line: socket.socket = transport.get_extra_info("socket")
        if line.family != socket.AF_UNIX:
            # asyncio does this only where a socket knows its protocol's number, as inherited ones may not.
            # Without it an answer's body waits 40 ms for the acknowledgement of its head.
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once a request has begun."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, unless it is there already."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Say as a problem that this is not HTTP, and hang up."""
        body = json.dumps(problems.members(400, "invalid_http", msg, path="/")).encode()
        headers = [
            ("Content-Type", problems.MEDIA_TYPE),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._stop_clock()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop_clock()
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self._head is not None:
            self._head.cancel()


class Server(uvicorn.Server):
    """Lets everybody go who waits for a job, then shuts down in order."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=END_SECONDS,
        )
        super().__init__(config)
        self._backend: Backend = app.state.backend

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        self._backend.waiting.close()
        await super().shutdown(sockets)
