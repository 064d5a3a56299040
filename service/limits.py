"""How large a request's body may be, and how slowly it may come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Bounds:
    """The most bytes of a body, the seconds it may take to begin, and the bytes a second it must keep up."""

    size: int
    patience: float = 10.0
    pace: float = 16 * 2**10
    drain: int = 64 * 2**20


class Limits:
    """ASGI middleware that ends a body over the bounds with 413 or 408, which the application writes."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request through a bounded `receive`."""
        if scope["type"] == "http":
            receive = _Intake(self._bounds, receive, Headers(scope=scope)).receive
        await self._app(scope, receive, send)


@dataclass
class _Intake:
    """The body of one request on its way in."""

    bounds: Bounds
    source: Receive
    headers: Headers
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    size: int = 0
    whole: bool = False

    async def receive(self) -> Message:
        if self.whole:
            return await self.source()
        if self.size == 0 and self._declared() > self.bounds.size:
            await self._refuse()
        message = await self._next()
        if self.size > self.bounds.size:
            await self._refuse()
        return message

    def _declared(self) -> int:
        length = self.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self.started + self.bounds.patience + self.size / self.bounds.pace):
                message = await self.source()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly; send it without pauses", _CLOSE) from None
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        return message

    async def _refuse(self) -> None:
        # A client that still sends would take a closed connection for a fault: it is heard out, to a point.
        waits = "expect" in self.headers
        while not waits and not self.whole and self.size < self.bounds.size + self.bounds.drain:
            await self._next()
        raise HTTPException(413, f"the body has more than the {self.bounds.size:,} bytes allowed", _CLOSE)
