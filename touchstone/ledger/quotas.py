"""What each tenant may use: how much may wait, how much it may cost in a day, how fast requests may come."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import redis
from pydantic import Field

from touchstone.errors import StorageFull
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.records import LOCAL, Record
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

CACHE_SECONDS = 1.0

STORAGE_RETRY_SECONDS = 60
"""When it is worth asking again whether there is room: jobs expire all the time."""

_KEY = "ts:allowances"
_MAX_CACHED = 10_000

Rate = Literal["requests", "submissions"]


class Quota(Record):
    """Bounds of one tenant; None is no bound."""

    waiting: int | None = Field(None, ge=0, description="Jobs that may wait.")
    passes: int | None = Field(None, ge=0, description="Passes that its jobs may ask for in a day (UTC).")
    requests: int | None = Field(None, ge=1, description="Requests a minute that only read.")
    submissions: int | None = Field(None, ge=1, description="Requests a minute that start or end something.")
    storage: int | None = Field(None, ge=0, description="Bytes that its jobs and models may hold.")


@dataclass(frozen=True)
class QuotaUsage:
    """What a job takes of its tenant's allowance at most."""

    passes: int = 0
    input_bytes: int = 0
    """Bytes of what it works on, which cost nothing where the tenant holds them already."""
    output_bytes: int = 0
    """Bytes of the files that it may leave, which are kept free until it ends."""


NO_USAGE = QuotaUsage()


@dataclass(frozen=True)
class RateLimitResult:
    """What became of a request that a rate applies to: how many more may come, and what `reset_seconds` are until.

    They are until the next may come where this one was refused, and until all are there again where not.
    """

    rate: Rate
    limit: int
    granted: bool
    remaining: int
    reset_seconds: float


class Quotas:
    """The operator's settings, but for tenants that got an allowance of their own.

    Whoever needs no key shares the service with nobody, and so has no bounds that were not set.
    """

    def __init__(self, client: redis.Redis, scripts: Scripts, settings: Settings) -> None:
        self._client = client
        self._scripts = scripts
        self._default = Quota(
            waiting=settings.tenant_queue_limit,
            passes=settings.tenant_passes,
            requests=settings.tenant_requests,
            submissions=settings.tenant_submissions,
            storage=settings.tenant_storage,
        )
        self._cache: dict[str, tuple[float, Quota]] = {}

    def of(self, tenant: str) -> Quota:
        """What a tenant may use, as it was at most a second ago."""
        until, known = self._cache.get(tenant, (0.0, self._default))
        if time.monotonic() < until:
            return known
        with map_redis_errors():
            stored: Any = self._client.hget(_KEY, tenant)
        found = Quota.model_validate_json(stored) if stored else self.default_for(tenant)
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[tenant] = (time.monotonic() + CACHE_SECONDS, found)
        return found

    def default_for(self, tenant: str) -> Quota:
        """What a tenant may use that got nothing of its own."""
        return Quota() if tenant == LOCAL else self._default

    def set(self, tenant: str, quota: Quota | None) -> None:
        """Give a tenant an allowance of its own, or with None what is usual; all know it within a second."""
        with map_redis_errors():
            if quota is None:
                self._client.hdel(_KEY, tenant)
            else:
                self._client.hset(_KEY, tenant, quota.model_dump_json())
        self._cache.pop(tenant, None)

    def all(self) -> dict[str, Quota]:
        """The tenants that have an allowance of their own."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(_KEY)
        return {name: Quota.model_validate_json(text) for name, text in sorted(stored.items())}

    def take(self, tenant: str, rate: Rate) -> RateLimitResult | None:
        """Let a request count against a tenant's rate; None where it has no bound."""
        limit = getattr(self.of(tenant), rate)
        if limit is None:
            return None
        granted, remaining, micro = self._scripts.run("tenants/rate", rate, tenant, limit)
        return RateLimitResult(rate, limit, granted == 1, remaining, micro / 1e6)

    def stored_bytes(self, tenant: str) -> int:
        """Bytes that a tenant's jobs and models hold, with those that jobs under way may yet leave."""
        with map_redis_errors():
            return int(self._client.hget("ts:stored", tenant) or 0)

    def check_storage(self, tenant: str, size: int) -> None:
        """Raise `StorageFull` where so many bytes more would be too many; nothing is counted."""
        allowed, stored = self.of(tenant), self.stored_bytes(tenant)
        if allowed.storage is not None and stored + size > allowed.storage:
            raise storage_full(stored, allowed)


def storage_full(stored: int, quota: Quota) -> StorageFull:
    """The refusal of more bytes than a tenant may hold."""
    return StorageFull(
        f"your jobs and models hold {stored:,} of {quota.storage:,} bytes, and this is more than is left; "
        "delete some, or try again when others have expired",
        retry_after=STORAGE_RETRY_SECONDS,
        stored=stored,
        limit=quota.storage,
    )
