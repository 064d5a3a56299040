"""The connection to Valkey or Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from touchstone.errors import LedgerUnavailable

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.5
_UNAVAILABLE_ERRORS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.InvalidResponse,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
)


# Errors that pass: the disk or the memory is full, or another server is the primary.
_TRANSIENT_PREFIXES = ("MISCONF", "OOM", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY", "UNKILLABLE")


def connect(url: str, *, answer_seconds: float = ANSWER_SECONDS) -> redis.Redis:
    """A client that never repeats a command by itself and never waits long."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        max_connections=1024,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=answer_seconds,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 0),
    )


class _Wait:
    """Shared by callers that wait once: until when their calls fail at once, on the clock of
    `time.monotonic`.
    """

    until = 0.0


_wait: ContextVar[_Wait | None] = ContextVar("wait", default=None)


@contextmanager
def wait_once() -> Iterator[None]:
    """Within this block, and in threads started with its context, calls wait for a silent server only once:
    after one has waited in vain, others fail at once for as long as that wait took.
    """
    token = _wait.set(_Wait())
    try:
        yield
    finally:
        _wait.reset(token)


@contextmanager
def map_redis_errors() -> Iterator[None]:
    """Turn every error of a server that cannot be reached into `LedgerUnavailable`."""
    wait, began = _wait.get(), time.monotonic()
    if wait and began < wait.until:
        raise _unavailable(redis.TimeoutError())
    try:
        yield
    except _UNAVAILABLE_ERRORS as error:
        if wait:
            now = time.monotonic()
            wait.until = now + (now - began)
        raise _unavailable(error) from error
    except redis.ResponseError as error:
        if str(error).startswith(_TRANSIENT_PREFIXES):
            raise _unavailable(error) from error
        raise


def _unavailable(error: Exception) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"the ledger cannot be reached at the moment ({type(error).__name__}); try again shortly"
    )
