"""Deliveries of webhooks and their attempts."""

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
    """The outcome of an attempt. Of the receiver's response only the status is stored."""

    status: int | None = Field(None, description="The receiver's HTTP status, if it answered.")
    error: AttemptError | None = Field(None, description="Why the attempt failed, if it did.")
    ms: int = Field(description="Milliseconds that it took.")


class Attempt(AttemptOutcome):
    """An attempt to deliver."""

    at: datetime


class DeliveryRecord(Record):
    """A message for one receiver; `endpoint` is None where a submission named the URL."""

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
    """The deliveries of one tenant."""

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
        """Deliveries that match, newest first, and the cursor of the next page if there is one."""
        named = {"tenant": self._tenant, "status": status, "endpoint": endpoint, "job": job}
        indexes = [f"ts:deliveries:{name}:{value}" for name, value in named.items() if value]
        found, cursor = self._finder.scan(IndexScan("ts:delivery:", indexes, indexes), limit, cursor)
        return codec.decode_each("delivery", DeliveryRecord.from_pairs, codec.name_pairs(found)), cursor

    def read(self, delivery: str) -> DeliveryRecord:
        """A delivery by id; `UnknownDelivery` where there is none."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(f"ts:delivery:{delivery}")
        if stored.get("tenant") != self._tenant:
            raise _unknown_delivery(delivery)
        return DeliveryRecord.from_pairs([text for pair in stored.items() for text in pair])

    def replay(self, delivery: str) -> DeliveryRecord:
        """Send a delivery as if it were new; `WebhookConflict` where its endpoint was disabled or deleted."""
        verdict = self._scripts.run("webhooks/replay", self._tenant, delivery)
        if verdict == "unknown":
            raise _unknown_delivery(delivery)
        if verdict == "endpoint_deleted":
            raise WebhookConflict("the endpoint was deleted, so nothing can be sent to it")
        if verdict == "endpoint_disabled":
            raise WebhookConflict("the endpoint is disabled; a ping that is delivered enables it")
        return self.read(delivery)


def _unknown_delivery(delivery: str) -> UnknownDelivery:
    return UnknownDelivery(f"there is no delivery {delivery[:64]!r}")
