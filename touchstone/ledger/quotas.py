"""Quotas and rate limits of each tenant: waiting jobs, passes a day, bytes, requests a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import redis
from pydantic import Field

from touchstone.errors import StorageFull
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.headroom import Headroom
from touchstone.ledger.records import LOCAL, Record
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

CACHE_SECONDS = 1.0

STORAGE_RETRY_SECONDS = 60
"""`Retry-After` where the quota of bytes is used up: jobs expire all the time."""

_KEY = "ts:allowances"
_MAX_CACHED = 10_000

Rate = Literal["requests", "submissions"]


class Quota(Record):
    """Limits of one tenant; None is no limit."""

    waiting: int | None = Field(None, ge=0, description="Jobs that may wait.")
    passes: int | None = Field(None, ge=0, description="Passes that its jobs may ask for in a day (UTC).")
    requests: int | None = Field(None, ge=1, description="Requests a minute that only read.")
    submissions: int | None = Field(None, ge=1, description="Requests a minute that start or end something.")
    storage: int | None = Field(None, ge=0, description="Bytes that its jobs and models may hold.")


@dataclass(frozen=True)
class QuotaUsage:
    """How much of its tenant's quota a job uses at most."""

    passes: int = 0
    input_bytes: int = 0
    """Bytes of what it works on, which are not counted again where the tenant holds them already."""
    output_bytes: int = 0
    """Bytes of the files that it may store, which are reserved until it ends."""


NO_USAGE = QuotaUsage()


@dataclass(frozen=True)
class RateLimitResult:
    """Whether a request was within its rate limit, how many more may come, and `reset_seconds`.

    These are the seconds until the next request is allowed where this one was refused, else until the limit
    is full again.
    """

    rate: Rate
    limit: int
    granted: bool
    remaining: int
    reset_seconds: float


class Quotas:
    """The operator's settings, but for tenants that got a quota of their own.

    The tenant of requests without keys has no limits but those that were set for it.
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
        self.headroom = Headroom()

    def of(self, tenant: str) -> Quota:
        """The quota of a tenant, at most a second old."""
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
        """The quota of a tenant that has none of its own."""
        return Quota() if tenant == LOCAL else self._default

    def set(self, tenant: str, quota: Quota | None) -> None:
        """Give a tenant a quota of its own, or with None the default; it applies within a second."""
        with map_redis_errors():
            if quota is None:
                self._client.hdel(_KEY, tenant)
            else:
                self._client.hset(_KEY, tenant, quota.model_dump_json())
        self._cache.pop(tenant, None)
        self.headroom.forget(tenant)

    def all(self) -> dict[str, Quota]:
        """The tenants that have a quota of their own."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(_KEY)
        return {name: Quota.model_validate_json(text) for name, text in sorted(stored.items())}

    def is_unlimited(self, tenant: str, rate: Rate) -> bool:
        """Whether it is known, without asking the ledger, that a tenant has no such rate limit."""
        until, known = self._cache.get(tenant, (0.0, self._default))
        return time.monotonic() < until and getattr(known, rate) is None

    def take(self, tenant: str, rate: Rate) -> RateLimitResult | None:
        """Count a request against a tenant's rate limit; None where there is none."""
        limit = getattr(self.of(tenant), rate)
        if limit is None:
            return None
        granted, remaining, micro = self._scripts.run("tenants/rate", rate, tenant, limit)
        return RateLimitResult(rate, limit, granted == 1, remaining, micro / 1e6)

    def stored_bytes(self, tenant: str) -> int:
        """Bytes that a tenant's jobs and models hold, with those that unfinished jobs may yet store."""
        with map_redis_errors():
            return int(self._client.hget("ts:stored", tenant) or 0)

    def check_storage(self, tenant: str, size: int) -> None:
        """Raise `StorageFull` where this many more bytes exceed the quota; nothing is counted."""
        allowed, stored = self.of(tenant), self.stored_bytes(tenant)
        if allowed.storage is not None and stored + size > allowed.storage:
            raise storage_full(stored, allowed)


def storage_full(stored: int, quota: Quota) -> StorageFull:
    """The error for bytes over a tenant's quota."""
    return StorageFull(
        f"your jobs and models hold {stored:,} of {quota.storage:,} bytes, and this is more than is left; "
        "delete some, or try again when others have expired",
        retry_after=STORAGE_RETRY_SECONDS,
        stored=stored,
        limit=quota.storage,
    )
