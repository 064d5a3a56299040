"""How large a request's body may be, and how slowly it may come.

Every body has the same small bound. A route that takes larger ones says so with `allow` before it reads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.connections import HEAD_BYTES
from service.patience import Patience

_CLOSE = {"Connection": "close"}
_INTAKE = "touchstone.intake"


@dataclass(frozen=True)
class Bounds:
    """The most bytes of a body and of a head; `patience` and `pace` of a body are those of `Patience`.

    `drain` bytes of a body that is refused are heard out.
    """

    size: int
    head: int = HEAD_BYTES
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
            refusal = self._refusal(Request(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a head that no application should see."""
        if _head_bytes(request.scope) > self._bounds.head:
            detail = f"the request's head has more than {self._bounds.head:,} bytes"
            return problems.write(request, 431, "head_too_large", detail, headers=_CLOSE)
        if {"content-length", "transfer-encoding"} <= set(request.headers):
            detail = "Content-Length beside Transfer-Encoding: who reads the one and who the other may differ"
            return problems.write(request, 400, "invalid_http", detail, headers=_CLOSE)
        return None


def _head_bytes(scope: Scope) -> int:
    target = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    return target + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])


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

    def __post_init__(self) -> None:
        self._patience = Patience(self.bounds.patience, self.bounds.pace)

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
            async with asyncio.timeout(self._patience.left):
                message = await self.source()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly; send it without pauses", _CLOSE) from None
        came = len(message.get("body", b""))
        self._patience.waited(clock() - began, came)
        self.size += came
        self.whole = not message.get("more_body", False)
        return message

    async def _refuse(self) -> None:
        # A client that still sends would take a closed connection for a fault: it is heard out, to a point.
        waits, enough = "expect" in self.headers, self.size + self.bounds.drain
        while not waits and not self.whole and self.size < enough:
            await self._next()
        raise HTTPException(413, f"the body has more than the {self.bounds.size:,} bytes allowed", _CLOSE)
