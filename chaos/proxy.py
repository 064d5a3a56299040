"""A bad network: a proxy between a process and its ledger that fails on demand."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

LATENCY_SECONDS = 0.1
_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

T = TypeVar("T")


class Mode(Enum):
    """How the network behaves."""

    PASS = "pass"
    RESET = "reset"
    """Connections are reset, and new ones are refused."""
    STALL = "stall"
    """Connections stay open, and new ones are accepted, but carry nothing."""
    ONE_WAY = "one way"
    """Requests arrive; responses are lost."""
    LATENCY = "latency"
    """Everything is delayed."""
    TRUNCATE = "truncate"
    """Responses are cut off, and their connections closed."""


class Proxy:
    """Listens on a port and forwards to a unix socket, according to its mode."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._mode = Mode.PASS
        self._connections: set[_ProxiedConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(self._listen())
        self.port = int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The address for redis clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def set_mode(self, mode: Mode) -> None:
        """Set the mode; returns once it is in effect."""
        self._run(self._set_mode(mode))

    @contextmanager
    def failing(self, mode: Mode) -> Iterator[None]:
        """Set the mode for the block."""
        self.set_mode(mode)
        try:
            yield
        finally:
            self.set_mode(Mode.PASS)

    def close(self) -> None:
        """Reset all connections and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> asyncio.Server:
        self._flows = asyncio.Event()
        self._flows.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _set_mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.STALL:
            self._flows.clear()
        else:
            self._flows.set()
        for connection in list(self._connections):
            # A stream that lost bytes is useless; a real network would drop the connection.
            if mode is Mode.RESET or connection.truncated:
                connection.reset()

    async def _close(self) -> None:
        self._server.close()
        await self._set_mode(Mode.RESET)
        # The tasks that serve the connections end.
        while self._connections:
            await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _ProxiedConnection(writer)
        self._connections.add(connection)
        try:
            if self._mode is not Mode.RESET:
                await self._connect(connection, reader)
        except OSError:
            pass  # either side may close at any time; the other sees its connection end
        finally:
            connection.reset()
            self._connections.discard(connection)

    async def _connect(self, connection: _ProxiedConnection, reader: asyncio.StreamReader) -> None:
        responses, connection.upstream = await asyncio.open_unix_connection(self._target)
        directions = [
            self._copy(connection, reader, connection.upstream),
            self._copy(connection, responses, connection.client),
        ]
        await _wait_for_first(directions)

    async def _copy(
        self, connection: _ProxiedConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            if not await self._forward(connection, chunk, writer):
                return
            await writer.drain()

    async def _forward(
        self, connection: _ProxiedConnection, chunk: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Forward a chunk according to the mode; false if the connection ends here."""
        await self._flows.wait()
        if self._mode is Mode.LATENCY:
            await asyncio.sleep(LATENCY_SECONDS)
        if writer is connection.client and self._mode is Mode.ONE_WAY:
            connection.truncated = True
        elif writer is connection.client and self._mode is Mode.TRUNCATE:
            writer.write(chunk[: random.randrange(len(chunk))])
            await writer.drain()
            return False
        else:
            writer.write(chunk)
        return True


class _ProxiedConnection:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.upstream: asyncio.StreamWriter | None = None
        self.truncated = False
        """Whether bytes of it were dropped."""

    def reset(self) -> None:
        """Close it with a TCP reset."""
        connection: socket.socket = self.client.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        for writer in filter(None, (self.client, self.upstream)):
            writer.transport.abort()


async def _wait_for_first(directions: list[Coroutine[Any, Any, None]]) -> None:
    """Wait until one of them ends, and cancel the other."""
    tasks = [asyncio.ensure_future(direction) for direction in directions]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
