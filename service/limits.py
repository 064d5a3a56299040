"""How large a request's body may be, and how slowly it may come.

Every body has the same small bound. A route that takes larger ones says so with `allow` before it reads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSE = {"Connection": "close"}
_INTAKE = "touchstone.intake"


@dataclass(frozen=True)
class Bounds:
    """The most bytes of a body, the seconds that it may let us wait, and the bytes that make up for a second.

    However much has come, nobody is waited for longer than `patience` at a time. `drain` bytes of a body that
    is refused are heard out.
    """

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
            intake = _Intake(self._bounds, receive, Headers(scope=scope))
            scope[_INTAKE], receive = intake, intake.receive
        await self._app(scope, receive, send)


def allow(request: Request, size: int) -> None:
    """Let this request's body have up to so many bytes; to be called before any of it is read."""
    intake: _Intake = request.scope[_INTAKE]
    intake.bounds = replace(intake.bounds, size=size)


@dataclass
class _Intake:
    """The body of one request on its way in."""

    bounds: Bounds
    source: Receive
    headers: Headers
    size: int = 0
    whole: bool = False
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.bounds.patience

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
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self.left):
                message = await self.source()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly; send it without pauses", _CLOSE) from None
        came = len(message.get("body", b""))
        self.left = min(self.bounds.patience, self.left - (clock() - began) + came / self.bounds.pace)
        self.size += came
        self.whole = not message.get("more_body", False)
        return message

    async def _refuse(self) -> None:
        # A client that still sends would take a closed connection for a fault: it is heard out, to a point.
        waits, enough = "expect" in self.headers, self.size + self.bounds.drain
        while not waits and not self.whole and self.size < enough:
            await self._next()
        raise HTTPException(413, f"the body has more than the {self.bounds.size:,} bytes allowed", _CLOSE)
