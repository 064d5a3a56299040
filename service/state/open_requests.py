"""Requests that stay open for long, event streams and waits, with bounds for each tenant and in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from touchstone.errors import Failure, TooManyStreams, TooManyWaits
from touchstone.ledger.records import LOCAL
from touchstone.settings import Settings

RESERVED_SHARE = 4
"""One connection of so many is left to short requests."""

_RETRY_SECONDS = 1


class OpenRequests:
    """Counts open streams and waits; to be used on the event loop.

    Where no keys are needed, the only tenant has no bound of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._most = settings.connections - settings.connections // RESERVED_SHARE
        self._streams: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()

    @contextmanager
    def stream(self, tenant: str) -> Iterator[None]:
        """Count an event stream for the length of the block. Raises TooManyStreams, and 503."""
        most = self._settings.tenant_streams
        refusal = TooManyStreams(
            f"at most {most:,} event streams of a tenant may be open; close one, or follow all jobs in one: "
            "GET /v1/events",
            retry_after=_RETRY_SECONDS,
            limit=most,
        )
        with self._count(self._streams, tenant, most, refusal):
            yield

    @contextmanager
    def wait(self, tenant: str) -> Iterator[None]:
        """Count a request that waits for a job likewise. Raises TooManyWaits, and 503."""
        most = self._settings.tenant_waits
        refusal = TooManyWaits(
            f"at most {most:,} requests of a tenant may wait for jobs; send it again later, or without "
            "Prefer: wait",
            retry_after=_RETRY_SECONDS,
            limit=most,
        )
        with self._count(self._waits, tenant, most, refusal):
            yield

    @contextmanager
    def _count(self, counts: Counter[str], tenant: str, most: int, refusal: Failure) -> Iterator[None]:
        unbounded = tenant == LOCAL and not self._settings.needs_keys
        if counts[tenant] >= most and not unbounded:
            raise refusal
        if self._streams.total() + self._waits.total() >= self._most:
            detail = (
                f"{self._most:,} streams and waits are open in all, and further connections are for short "
                "requests; try again soon"
            )
            raise HTTPException(503, detail, {"Retry-After": str(_RETRY_SECONDS)})
        counts[tenant] += 1
        try:
            yield
        finally:
            counts[tenant] -= 1
            if not counts[tenant]:
                del counts[tenant]
