"""Bodies that come too slowly, or never end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http import connections
from service.http.body_limits import SMALL, Bounds, Limits, Room, allow

Message = dict[str, Any]


def piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def take(
    pieces: AsyncIterator[Message], bounds: Bounds, room: Room | None = None, **headers: str
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
    await Limits(app, bounds, room or Room(10**9))(scope, pieces.__anext__, None)  # type: ignore[arg-type]
    return bytes(received)


async def sent(*bodies: bytes, pause: float = 0) -> AsyncIterator[Message]:
    for place, body in enumerate(bodies, 1):
        await asyncio.sleep(pause)
        yield piece(body, more=place < len(bodies))


def test_a_body_within_the_bounds_is_left_alone() -> None:
    assert asyncio.run(take(sent(b"ab", b"cd"), Bounds(4))) == b"abcd"


def test_a_body_over_the_bounds_is_413() -> None:
    with pytest.raises(HTTPException) as refused:
        asyncio.run(take(sent(b"ab", b"cde"), Bounds(4)))
    assert refused.value.status_code == 413
    assert refused.value.headers == {"Connection": "close"}


def test_a_client_that_sends_on_is_heard_out_to_a_point() -> None:
    pieces = sent(*[b"x" * 10] * 100)

    async def rest() -> int:
        with pytest.raises(HTTPException):
            await take(pieces, Bounds(4, drain=200))
        return len([message async for message in pieces])

    assert 75 < asyncio.run(rest()) < 85


def test_what_is_small_or_refused_takes_no_room() -> None:
    room, held = Room(10**9), list[int]()

    async def pieces() -> AsyncIterator[Message]:
        for place in range(5):
            held.append(room.held)
            yield piece(bytes(SMALL), more=place < 4)

    with pytest.raises(HTTPException):
        asyncio.run(take(pieces(), Bounds(2 * SMALL), room))
    assert held == [0, 0, 2 * SMALL, 0, 0], "the third is one too many, and heard out"


def test_one_that_asks_before_it_sends_is_not() -> None:
    pieces = sent(b"never")

    async def rest() -> list[Message]:
        with pytest.raises(HTTPException) as refused:
            await take(pieces, Bounds(4), content_length="5", expect="100-continue")
        assert refused.value.status_code == 413
        return [message async for message in pieces]

    assert [message["body"] for message in asyncio.run(rest())] == [b"never"]


@pytest.mark.parametrize("length", ["", "x", "-5", "9" * 30, "٣"])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    async def declared() -> bytes:
        scope: Any = {"type": "http", "headers": [(b"content-length", length.encode())]}
        received = b""

        async def app(_: Any, receive: Callable[[], Awaitable[Message]], __: Any) -> None:
            nonlocal received
            received = (await receive())["body"]

        await Limits(app, Bounds(4), Room(10**9))(scope, sent(b"abc").__anext__, None)  # type: ignore[arg-type]
        return received

    assert asyncio.run(declared()) == b"abc"


def test_a_body_that_stands_still_is_408() -> None:
    with pytest.raises(HTTPException) as refused:
        asyncio.run(take(sent(*[b"x"] * 100, pause=0.05), Bounds(1000, patience=0.2, pace=1000)))
    assert refused.value.status_code == 408


def test_a_slow_body_that_keeps_its_pace_is_not() -> None:
    body = asyncio.run(take(sent(*[b"x" * 100] * 20, pause=0.1), Bounds(2000, patience=1.5, pace=100)))
    assert len(body) == 2000


def test_what_came_fast_is_no_credit_for_standing_still() -> None:
    async def stalled() -> AsyncIterator[Message]:
        yield piece(b"x" * 100_000, more=True)
        await asyncio.sleep(5)
        yield piece(b"x", more=False)

    with pytest.raises(HTTPException) as refused:
        asyncio.run(take(stalled(), Bounds(10**6, patience=0.2, pace=1000)))
    assert refused.value.status_code == 408


def test_a_route_may_allow_more() -> None:
    received = 0

    async def app(scope: Any, receive: Callable[[], Awaitable[Message]], _: Any) -> None:
        nonlocal received
        allow(Request(scope), 6)
        for _ in range(2):
            received += len((await receive())["body"])

    scope: Any = {"type": "http", "headers": []}
    asyncio.run(Limits(app, Bounds(4), Room(10**9))(scope, sent(b"abc", b"def").__anext__, None))  # type: ignore[arg-type]
    assert received == 6
    with pytest.raises(HTTPException):
        asyncio.run(Limits(app, Bounds(4), Room(10**9))(scope, sent(b"abc", b"defg").__anext__, None))  # type: ignore[arg-type]


def test_the_patience_of_the_service_is_less_than_fifteen_seconds() -> None:
    bounds = Bounds(1)
    trickled = 15
    assert bounds.patience + trickled / bounds.pace < 15
    assert connections.HEAD_SECONDS < 15
