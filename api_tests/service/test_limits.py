"""Bodies that come too slowly, or never end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http import connections
from service.http.body_limits import SMALL_BODY, BodyLimitMiddleware, BodyLimits, BodyMemory, allow

Message = dict[str, Any]


def body_message(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def receive_body(
    pieces: AsyncIterator[Message], bounds: BodyLimits, room: BodyMemory | None = None, **headers: str
) -> bytes:
    """What an application receives of a body through the limits."""
    received = bytearray()

    async def app(scope: Any, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        more = True
        while more:
            message = await receive()
            received.extend(message["body"])
            more = message["more_body"]

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw}
    await BodyLimitMiddleware(app, bounds, room or BodyMemory(10**9))(scope, pieces.__anext__, None)  # type: ignore[arg-type]
    return bytes(received)


async def stream_body(*bodies: bytes, pause: float = 0) -> AsyncIterator[Message]:
    for place, body in enumerate(bodies, 1):
        await asyncio.sleep(pause)
        yield body_message(body, more=place < len(bodies))


def test_body_within_the_limits_passes_unchanged() -> None:
    assert asyncio.run(receive_body(stream_body(b"ab", b"cd"), BodyLimits(4))) == b"abcd"


def test_body_over_the_limit_is_413() -> None:
    with pytest.raises(HTTPException) as refused:
        asyncio.run(receive_body(stream_body(b"ab", b"cde"), BodyLimits(4)))
    assert refused.value.status_code == 413
    assert refused.value.headers == {"Connection": "close"}


def test_refused_body_is_drained_only_up_to_the_drain_limit() -> None:
    pieces = stream_body(*[b"x" * 10] * 100)

    async def rest() -> int:
        with pytest.raises(HTTPException):
            await receive_body(pieces, BodyLimits(4, drain=200))
        return len([message async for message in pieces])

    assert 75 < asyncio.run(rest()) < 85


def test_small_or_refused_bodies_use_no_body_memory() -> None:
    room, held = BodyMemory(10**9), list[int]()

    async def pieces() -> AsyncIterator[Message]:
        for place in range(5):
            held.append(room.used)
            yield body_message(bytes(SMALL_BODY), more=place < 4)

    with pytest.raises(HTTPException):
        asyncio.run(receive_body(pieces(), BodyLimits(2 * SMALL_BODY), room))
    assert held == [0, 0, 2 * SMALL_BODY, 0, 0], "the third is one too many, and heard out"


def test_refused_body_with_expect_continue_is_not_read() -> None:
    pieces = stream_body(b"never")

    async def rest() -> list[Message]:
        with pytest.raises(HTTPException) as refused:
            await receive_body(pieces, BodyLimits(4), content_length="5", expect="100-continue")
        assert refused.value.status_code == 413
        return [message async for message in pieces]

    assert [message["body"] for message in asyncio.run(rest())] == [b"never"]


@pytest.mark.parametrize("length", ["", "x", "-5", "9" * 30, "٣"])
def test_invalid_content_length_is_ignored(length: str) -> None:
    async def declared() -> bytes:
        scope: Any = {"type": "http", "headers": [(b"content-length", length.encode())]}
        received = b""

        async def app(_: Any, receive: Callable[[], Awaitable[Message]], __: Any) -> None:
            nonlocal received
            received = (await receive())["body"]

        await BodyLimitMiddleware(app, BodyLimits(4), BodyMemory(10**9))(
            scope, stream_body(b"abc").__anext__, None
        )  # type: ignore[arg-type]
        return received

    assert asyncio.run(declared()) == b"abc"


def test_stalled_body_is_408() -> None:
    with pytest.raises(HTTPException) as refused:
        asyncio.run(
            receive_body(
                stream_body(*[b"x"] * 100, pause=0.05), BodyLimits(1000, max_wait=0.2, min_rate=1000)
            )
        )
    assert refused.value.status_code == 408


def test_slow_body_above_the_minimum_rate_is_accepted() -> None:
    body = asyncio.run(
        receive_body(stream_body(*[b"x" * 100] * 20, pause=0.1), BodyLimits(2000, max_wait=1.5, min_rate=100))
    )
    assert len(body) == 2000


def test_fast_start_gives_no_credit_for_stalling_later() -> None:
    async def stalled() -> AsyncIterator[Message]:
        yield body_message(b"x" * 100_000, more=True)
        await asyncio.sleep(5)
        yield body_message(b"x", more=False)

    with pytest.raises(HTTPException) as refused:
        asyncio.run(receive_body(stalled(), BodyLimits(10**6, max_wait=0.2, min_rate=1000)))
    assert refused.value.status_code == 408


def test_route_can_raise_the_body_limit() -> None:
    received = 0

    async def app(scope: Any, receive: Callable[[], Awaitable[Message]], _: Any) -> None:
        nonlocal received
        allow(Request(scope), 6)
        for _ in range(2):
            received += len((await receive())["body"])

    scope: Any = {"type": "http", "headers": []}
    asyncio.run(
        BodyLimitMiddleware(app, BodyLimits(4), BodyMemory(10**9))(
            scope, stream_body(b"abc", b"def").__anext__, None
        )
    )  # type: ignore[arg-type]
    assert received == 6
    with pytest.raises(HTTPException):
        asyncio.run(
            BodyLimitMiddleware(app, BodyLimits(4), BodyMemory(10**9))(
                scope, stream_body(b"abc", b"defg").__anext__, None
            )
        )  # type: ignore[arg-type]


def test_body_and_head_timeouts_are_less_than_fifteen_seconds() -> None:
    bounds = BodyLimits(1)
    trickled = 15
    assert bounds.max_wait + trickled / bounds.min_rate < 15
    assert connections.HEAD_SECONDS < 15
