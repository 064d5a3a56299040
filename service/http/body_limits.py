"""Limits of a request's body: its size, and the time that it may take.

Every body has the same small limit. A route that accepts larger ones calls `allow` before it reads.
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
from service.http.read_deadline import ReadDeadline

_CLOSE = {"Connection": "close"}
_BODY_READER = "touchstone.intake"
_MEMORY_FULL = "too many large bodies are being sent at once; send this one again soon"

SMALL_BODY = 64 * 2**10
"""Bodies up to this size are always accepted, even when the memory for bodies is full."""


@dataclass(frozen=True)
class BodyLimits:
    """The most bytes of a body and of a head; `max_wait` and `min_rate` are those of `ReadDeadline`.

    Of a refused body up to `drain` bytes are still read.
    """

    size: int
    head: int = HEAD_BYTES
    max_wait: float = 10.0
    min_rate: float = 16 * 2**10
    drain: int = 64 * 2**20


@dataclass
class BodyMemory:
    """The bytes of all requests' bodies in memory, and their limit."""

    limit: int
    used: int = 0


class BodyLimitMiddleware:
    """ASGI middleware that refuses a body over the limits: 413, 408 or 503, which the application writes."""

    def __init__(self, app: ASGIApp, limits: BodyLimits, memory: BodyMemory) -> None:
        self._app = app
        self._limits = limits
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request through a limited `receive`."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = _BodyReader(self._limits, self._memory, receive, Headers(scope=scope))
        scope[_BODY_READER] = reader
        try:
            await (self._refuse_head(Request(scope)) or self._app)(scope, reader.receive, send)
        finally:
            reader.release()

    def _refuse_head(self, request: Request) -> Response | None:
        """The response to a head that is refused before the application sees it."""
        if _head_bytes(request.scope) > self._limits.head:
            detail = f"the request's head has more than {self._limits.head:,} bytes"
            return problems.build_response(request, 431, "head_too_large", detail, headers=_CLOSE)
        if {"content-length", "transfer-encoding"} <= set(request.headers):
            detail = "Content-Length beside Transfer-Encoding: who reads the one and who the other may differ"
            return problems.build_response(request, 400, "invalid_http", detail, headers=_CLOSE)
        return None


def _head_bytes(scope: Scope) -> int:
    target = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    return target + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])


def allow(request: Request, size: int) -> None:
    """Raise the limit of this request's body to `size`, for a route that does not keep the body in memory.
    To be called before the body is read.
    """
    reader: _BodyReader = request.scope[_BODY_READER]
    reader.limits, reader.in_memory = replace(reader.limits, size=size), False


def release(request: Request) -> None:
    """Count this request's body as no longer in memory."""
    reader: _BodyReader = request.scope[_BODY_READER]
    reader.release()


@dataclass
class _BodyReader:
    """The body of one request while it is received."""

    limits: BodyLimits
    memory: BodyMemory
    source: Receive
    headers: Headers
    size: int = 0
    complete: bool = False
    in_memory: bool = True
    reserved: int = 0

    def __post_init__(self) -> None:
        self._deadline = ReadDeadline(self.limits.max_wait, self.limits.min_rate)

    async def receive(self) -> Message:
        if self.complete:
            return await self.source()
        if self.size == 0 and self._declared_size() > self.limits.size:
            await self._refuse(self._too_large())
        message = await self._read_next()
        if self.size > self.limits.size:
            await self._refuse(self._too_large())
        if self.size > SMALL_BODY and self.in_memory:
            self._reserve()
            if self.memory.used > self.memory.limit:
                await self._refuse(HTTPException(503, _MEMORY_FULL, {"Retry-After": "1", **_CLOSE}))
        return message

    def _reserve(self) -> None:
        self.memory.used += self.size - self.reserved
        self.reserved = self.size

    def release(self) -> None:
        self.memory.used -= self.reserved
        self.reserved = 0

    def _declared_size(self) -> int:
        length = self.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0

    async def _read_next(self) -> Message:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._deadline.left):
                message = await self.source()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly; send it without pauses", _CLOSE) from None
        came = len(message.get("body", b""))
        self._deadline.spend(clock() - began, came)
        self.size += came
        self.complete = not message.get("more_body", False)
        return message

    async def _refuse(self, refusal: HTTPException) -> None:
        self.release()
        # A client that still sends would see a closed connection, not the problem: part of the rest is read.
        waits, enough = "expect" in self.headers, self.size + self.limits.drain
        while not waits and not self.complete and self.size < enough:
            await self._read_next()
        raise refusal

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than the {self.limits.size:,} bytes allowed", _CLOSE)
