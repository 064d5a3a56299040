"""What each tenant may use: how much may wait, how much it may cost in a day, how fast requests may come."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import redis
from pydantic import Field

from touchstone.errors import StorageFull
from touchstone.ledger.connection import reachable
from touchstone.ledger.records import LOCAL, Record
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

REMEMBERED_SECONDS = 1.0

STORAGE_SECONDS = 60
"""When it is worth asking again whether there is room: jobs expire all the time."""

_KEY = "ts:allowances"
_MOST_REMEMBERED = 10_000

Rate = Literal["requests", "submissions"]


class Allowance(Record):
    """Bounds of one tenant; None is no bound."""

    waiting: int | None = Field(None, ge=0, description="Jobs that may wait.")
    passes: int | None = Field(None, ge=0, description="Passes that its jobs may ask for in a day (UTC).")
    requests: int | None = Field(None, ge=1, description="Requests a minute that only read.")
    submissions: int | None = Field(None, ge=1, description="Requests a minute that start or end something.")
    storage: int | None = Field(None, ge=0, description="Bytes that its jobs and models may hold.")


@dataclass(frozen=True)
class Needs:
    """What a job takes of its tenant's allowance at most."""

    passes: int = 0
    brings: int = 0
    """Bytes of what it works on, which cost nothing where the tenant holds them already."""
    leaves: int = 0
    """Bytes of the files that it may leave, which are kept free until it ends."""


NOTHING = Needs()


@dataclass(frozen=True)
class Standing:
    """What became of a request that a rate applies to: how many more may come, and what `seconds` are until.

    They are until the next may come where this one was refused, and until all are there again where not.
    """

    rate: Rate
    most: int
    granted: bool
    left: int
    seconds: float


class Allowances:
    """The operator's settings, but for tenants that got an allowance of their own.

    Whoever needs no key shares the service with nobody, and so has no bounds that were not set.
    """

    def __init__(self, client: redis.Redis, scripts: Scripts, settings: Settings) -> None:
        self._client = client
        self._scripts = scripts
        self._usual = Allowance(
            waiting=settings.tenant_queue_limit,
            passes=settings.tenant_passes,
            requests=settings.tenant_requests,
            submissions=settings.tenant_submissions,
            storage=settings.tenant_storage,
        )
        self._remembered: dict[str, tuple[float, Allowance]] = {}

    def of(self, tenant: str) -> Allowance:
        """What a tenant may use, as it was at most a second ago."""
        until, known = self._remembered.get(tenant, (0.0, self._usual))
        if time.monotonic() < until:
            return known
        with reachable():
            stored: Any = self._client.hget(_KEY, tenant)
        found = Allowance.model_validate_json(stored) if stored else self.usual(tenant)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[tenant] = (time.monotonic() + REMEMBERED_SECONDS, found)
        return found

    def usual(self, tenant: str) -> Allowance:
        """What a tenant may use that got nothing of its own."""
        return Allowance() if tenant == LOCAL else self._usual

    def set(self, tenant: str, allowance: Allowance | None) -> None:
        """Give a tenant an allowance of its own, or with None what is usual; all know it within a second."""
        with reachable():
            if allowance is None:
                self._client.hdel(_KEY, tenant)
            else:
                self._client.hset(_KEY, tenant, allowance.model_dump_json())
        self._remembered.pop(tenant, None)

    def all(self) -> dict[str, Allowance]:
        """The tenants that have an allowance of their own."""
        with reachable():
            stored: Any = self._client.hgetall(_KEY)
        return {name: Allowance.model_validate_json(text) for name, text in sorted(stored.items())}

    def take(self, tenant: str, rate: Rate) -> Standing | None:
        """Let a request count against a tenant's rate; None where it has no bound."""
        most = getattr(self.of(tenant), rate)
        if most is None:
            return None
        granted, left, micro = self._scripts.run("tenants/rate", rate, tenant, most)
        return Standing(rate, most, granted == 1, left, micro / 1e6)

    def stored(self, tenant: str) -> int:
        """Bytes that a tenant's jobs and models hold, with those that jobs under way may yet leave."""
        with reachable():
            return int(self._client.hget("ts:stored", tenant) or 0)

    def check_storage(self, tenant: str, size: int) -> None:
        """Raise `StorageFull` where so many bytes more would be too many; nothing is counted."""
        allowed, stored = self.of(tenant), self.stored(tenant)
        if allowed.storage is not None and stored + size > allowed.storage:
            raise over_storage(stored, allowed)


def over_storage(stored: int, allowed: Allowance) -> StorageFull:
    """The refusal of more bytes than a tenant may hold."""
    return StorageFull(
        f"your jobs and models hold {stored:,} of {allowed.storage:,} bytes, and this is more than is left; "
        "delete some, or try again when others have expired",
        retry_after=STORAGE_SECONDS,
        stored=stored,
        limit=allowed.storage,
    )
