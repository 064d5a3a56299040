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
from service.http.connections import HEAD_BYTES
from service.http.read_deadline import Patience

_CLOSE = {"Connection": "close"}
_INTAKE = "touchstone.intake"
_NO_ROOM = "too many large bodies are being sent at once; send this one again soon"

SMALL = 64 * 2**10
"""Bodies up to this size are always taken, however full it is."""


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


@dataclass
class Room:
    """The bytes of bodies that are held in memory at once, by all requests, and the most that may be."""

    most: int
    held: int = 0


class Limits:
    """ASGI middleware that ends a body over the bounds with 413, 408 or 503, which the application writes."""

    def __init__(self, app: ASGIApp, bounds: Bounds, room: Room) -> None:
        self._app = app
        self._bounds = bounds
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request through a bounded `receive`."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        intake = _Intake(self._bounds, self._room, receive, Headers(scope=scope))
        scope[_INTAKE] = intake
        try:
            await (self._refusal(Request(scope)) or self._app)(scope, intake.receive, send)
        finally:
            intake.release()

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
    """Let this request's body have up to so many bytes, which are not held in memory; to be called before
    any of it is read.
    """
    intake: _Intake = request.scope[_INTAKE]
    intake.bounds, intake.kept = replace(intake.bounds, size=size), False


def release(request: Request) -> None:
    """Nothing of this request's body is held any more."""
    intake: _Intake = request.scope[_INTAKE]
    intake.release()


@dataclass
class _Intake:
    """The body of one request on its way in."""

    bounds: Bounds
    room: Room
    source: Receive
    headers: Headers
    size: int = 0
    whole: bool = False
    kept: bool = True
    held: int = 0

    def __post_init__(self) -> None:
        self._patience = Patience(self.bounds.patience, self.bounds.pace)

    async def receive(self) -> Message:
        if self.whole:
            return await self.source()
        if self.size == 0 and self._declared() > self.bounds.size:
            await self._refuse(self._too_large())
        message = await self._next()
        if self.size > self.bounds.size:
            await self._refuse(self._too_large())
        if self.size > SMALL and self.kept:
            self._hold()
            if self.room.held > self.room.most:
                await self._refuse(HTTPException(503, _NO_ROOM, {"Retry-After": "1", **_CLOSE}))
        return message

    def _hold(self) -> None:
        self.room.held += self.size - self.held
        self.held = self.size

    def release(self) -> None:
        self.room.held -= self.held
        self.held = 0

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

    async def _refuse(self, refusal: HTTPException) -> None:
        self.release()
        # A client that still sends would take a closed connection for a fault: it is heard out, to a point.
        waits, enough = "expect" in self.headers, self.size + self.bounds.drain
        while not waits and not self.whole and self.size < enough:
            await self._next()
        raise refusal

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than the {self.bounds.size:,} bytes allowed", _CLOSE)
