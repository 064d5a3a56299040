"""uvicorn with `HttpProtocol`, and a shutdown that ends waiting requests first."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from service.http.connections import HEAD_BYTES, HEAD_SECONDS, ConnectionLimit, HttpProtocol
from service.state.backend import Backend
from touchstone.settings import Settings

SHUTDOWN_SECONDS = 10
BACKLOG = 2048
"""Connections that wait to be accepted, as uvicorn has it."""


def open_listeners(settings: Settings, private: Path) -> list[socket.socket]:
    """Listen on the address of the settings beside other processes that do, and on a Unix socket alone."""
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = {(family, address[:2]) for family, _, _, _, address in found}
    listeners = [
        socket.create_server(address, family=family, reuse_port=True, backlog=BACKLOG)
        for family, address in sorted(addresses)
    ]
    private.unlink(missing_ok=True)
    own = socket.socket(socket.AF_UNIX)
    own.bind(os.fspath(private))
    private.chmod(0o600)
    return [*listeners, own]


class Server(uvicorn.Server):
    """Ends the waits for jobs, then shuts down gracefully."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        limit = ConnectionLimit(settings.connections, settings.connections_each)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=partial(HttpProtocol, limit=limit),  # type: ignore[arg-type]  # all uvicorn does is to call it
            h11_max_incomplete_event_size=HEAD_BYTES,
            log_config=None,
            access_log=False,
            proxy_headers=settings.proxies is not None,
            forwarded_allow_ips=settings.proxies or [],
            server_header=False,
            timeout_keep_alive=int(HEAD_SECONDS),  # longer than clients keep idle connections, mostly 5 s
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self._backend: Backend = app.state.backend

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down gracefully."""
        self._backend.waiters.close()
        await super().shutdown(sockets)
