"""Which jobs have expired, and which blobs the ledger still needs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import redis

from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

EXPIRY_BATCH = 100

EVENTS_SECONDS = 600.0
"""How long the progress and the metrics of a job are kept after its end."""

_DAY_MS = 86_400_000


class Retention:
    """Expired jobs and unreferenced blobs; all times are those of the ledger's clock."""

    def __init__(self, client: redis.Redis, scripts: Scripts, settings: Settings) -> None:
        self._client = client
        self._scripts = scripts
        self._retention_ms = round(settings.retention_days * _DAY_MS)

    def expire(self) -> int:
        """Delete a batch of expired jobs; returns how many: fewer than `EXPIRY_BATCH` means all."""
        return int(self._scripts.run("jobs/expire", self._retention_ms, EXPIRY_BATCH))

    def cut_events(self) -> int:
        """Delete all events but changes of status of a batch of jobs that ended long enough ago; returns how
        many: fewer than `EXPIRY_BATCH` means all.
        """
        return int(self._scripts.run("jobs/cut", round(EVENTS_SECONDS * 1000), EXPIRY_BATCH))

    def now(self) -> int:
        """The ledger's time in milliseconds."""
        with map_redis_errors():
            seconds, microseconds = self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def take_unreferenced(self, limit: int) -> list[str]:
        """Some blobs that no job or model holds any more, each returned once."""
        with map_redis_errors():
            taken: Any = self._client.spop("ts:loose", limit)
        return list(taken)

    def filter_referenced(self, digests: Sequence[str]) -> set[str]:
        """Those of these blobs that a job or a registered model holds."""
        if not digests:
            return set()
        with map_redis_errors():
            counts: Any = self._client.hmget("ts:references", list(digests))
        return {digest for digest, count in zip(digests, counts, strict=True) if count}

    def take_turn(self, seconds: float) -> bool:
        """Whether this caller is to do what only one of all processes does in so many seconds."""
        with map_redis_errors():
            return bool(self._client.set("ts:turn", 1, nx=True, px=round(seconds * 1000)))

    def ledger_id(self) -> str:
        """The id of this ledger, which no other has; the first process chose it."""
        with map_redis_errors():
            self._client.set("ts:name", secrets.token_hex(16), nx=True)
            return str(self._client.get("ts:name"))
