"""uvicorn with `HttpProtocol`, and a shutdown that ends waiting requests first."""

from __future__ import annotations

import socket
from functools import partial

import uvicorn
from fastapi import FastAPI

from service.http.connections import HEAD_BYTES, HEAD_SECONDS, ConnectionLimit, HttpProtocol
from service.state.backend import Backend
from touchstone.settings import Settings

SHUTDOWN_SECONDS = 10


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
