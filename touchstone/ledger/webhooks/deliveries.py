"""What receivers of webhooks are told, and how that went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import redis
from pydantic import Field

from touchstone.errors import UnknownDelivery, WebhookConflict
from touchstone.ledger import codec
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.records import Record
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.search import Finder, IndexScan

DeliveryType = Literal["job.succeeded", "job.failed", "job.canceled", "webhook.ping"]
DeliveryStatus = Literal["pending", "delivered", "failed"]
AttemptError = Literal[
    "address_refused",
    "unreachable",
    "timed_out",
    "refused",
    "redirected",
    "endpoint_deleted",
    "endpoint_disabled",
]


class AttemptOutcome(Record):
    """How a try went. Of what the receiver said nothing is kept but the status."""

    status: int | None = Field(None, description="What the receiver answered, if it did.")
    error: AttemptError | None = Field(None, description="What was wrong, if anything was.")
    ms: int = Field(description="Milliseconds that it took.")


class Attempt(AttemptOutcome):
    """A try to deliver."""

    at: datetime


class DeliveryRecord(Record):
    """One thing that one receiver is told; `endpoint` is None where a submission named the URL."""

    id: str
    type: DeliveryType
    status: DeliveryStatus
    tenant: str
    endpoint: str | None
    url: str
    job: str | None
    created_at: datetime
    due_at: datetime | None
    attempts: tuple[Attempt, ...]

    @classmethod
    def from_pairs(cls, pairs: Sequence[str]) -> DeliveryRecord:
        """Read one from the names and values of its hash."""
        stored = codec.decode_pairs(pairs)
        return cls(
            **{name: stored[name] for name in ("id", "type", "status", "tenant", "url")},
            endpoint=stored["endpoint"] or None,
            job=stored["job"] or None,
            created_at=codec.decode_time(stored["created_at"]),
            due_at=codec.decode_time(stored["due"]) if "due" in stored else None,
            attempts=tuple(map(_decode_attempt, json.loads(stored["attempts"]))),
        )


def _decode_attempt(stored: dict[str, Any]) -> Attempt:
    return Attempt(**(stored | {"at": codec.decode_time(stored["at"])}))


class Deliveries:
    """A tenant's deliveries; those of another are not there."""

    def __init__(self, client: redis.Redis, scripts: Scripts, finder: Finder, tenant: str) -> None:
        self._client = client
        self._scripts = scripts
        self._finder = finder
        self._tenant = tenant

    def find(
        self,
        *,
        status: DeliveryStatus | None = None,
        endpoint: str | None = None,
        job: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[DeliveryRecord], str | None]:
        """Those that fit, newest first, and where the next page begins if there is one."""
        named = {"tenant": self._tenant, "status": status, "endpoint": endpoint, "job": job}
        indexes = [f"ts:deliveries:{name}:{value}" for name, value in named.items() if value]
        found, cursor = self._finder.scan(IndexScan("ts:delivery:", indexes, indexes), limit, cursor)
        return [DeliveryRecord.from_pairs(pairs) for pairs in found], cursor

    def read(self, delivery: str) -> DeliveryRecord:
        """One of them; `UnknownDelivery` where there is none."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(f"ts:delivery:{delivery}")
        if stored.get("tenant") != self._tenant:
            raise _unknown_delivery(delivery)
        return DeliveryRecord.from_pairs([text for pair in stored.items() for text in pair])

    def replay(self, delivery: str) -> DeliveryRecord:
        """Send one as if it had never been tried; `WebhookConflict` where its endpoint is off or gone."""
        verdict = self._scripts.run("webhooks/replay", self._tenant, delivery)
        if verdict == "unknown":
            raise _unknown_delivery(delivery)
        if verdict == "endpoint_deleted":
            raise WebhookConflict("the endpoint was deleted, so nothing can be sent there")
        if verdict == "endpoint_disabled":
            raise WebhookConflict("the endpoint is switched off; a ping that arrives switches it on")
        return self.read(delivery)


def _unknown_delivery(delivery: str) -> UnknownDelivery:
    return UnknownDelivery(f"there is no delivery {delivery[:64]!r}")
