"""A tenant's webhook endpoints, and the secrets that sign what is sent there."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, get_args

import redis
from pydantic import Field

from touchstone.errors import UnknownWebhook, WebhookConflict
from touchstone.ledger import codec
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.records import Record
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import DeliveryRecord

MAX_ENDPOINTS = 20
MAX_SECRETS = 3
ROTATION_HOURS = 24

JobEvent = Literal["job.succeeded", "job.failed", "job.canceled"]
JOB_EVENTS: tuple[JobEvent, ...] = get_args(JobEvent)


class WebhookEndpoint(Record):
    """A URL that receives the ends of a tenant's jobs."""

    id: str
    url: str
    events: tuple[JobEvent, ...] = JOB_EVENTS
    description: str = ""
    created_at: datetime
    disabled_at: datetime | None = Field(None, description="Since when the endpoint is disabled, if it is.")


class Endpoints:
    """The endpoints of one tenant."""

    def __init__(self, client: redis.Redis, scripts: Scripts, tenant: str) -> None:
        self._client = client
        self._scripts = scripts
        self._tenant = tenant
        self._key = f"ts:webhooks:{tenant}"

    def add(self, url: str, events: Sequence[JobEvent], *, description: str, secret: str) -> WebhookEndpoint:
        """Store a new endpoint; `WebhookConflict` where the tenant has as many as allowed."""
        name = f"wh_{secrets.token_hex(12)}"
        record = json.dumps({"id": name, "url": url, "events": list(events), "description": description})
        stored = self._scripts.run("webhooks/endpoint", self._tenant, name, record, secret, MAX_ENDPOINTS)
        if stored is None:
            raise WebhookConflict(
                f"{MAX_ENDPOINTS} endpoints are registered, as many as allowed; delete one first"
            )
        return _decode_endpoint(stored)

    def all(self) -> list[WebhookEndpoint]:
        """All endpoints, newest first."""
        with map_redis_errors():
            stored: Any = self._client.hgetall(self._key)
        found = codec.decode_each("webhook", _decode_endpoint, stored.items())
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def read(self, endpoint: str) -> WebhookEndpoint:
        """An endpoint by id; `UnknownWebhook` where there is none."""
        with map_redis_errors():
            stored: Any = self._client.hget(self._key, endpoint)
        if stored is None:
            raise _unknown_webhook(endpoint)
        return _decode_endpoint(stored)

    def delete(self, endpoint: str) -> None:
        """Delete an endpoint; its pending deliveries fail."""
        if not self._scripts.run("webhooks/withdraw", self._tenant, endpoint):
            raise _unknown_webhook(endpoint)

    def rotate(self, endpoint: str = "") -> tuple[str, datetime]:
        """A new secret of an endpoint, or of the webhooks of submissions; the previous one stays valid until
        the time returned.
        """
        secret = signatures.new_secret()
        overlap = ROTATION_HOURS * 3_600_000
        until = self._scripts.run("webhooks/rotate", self._tenant, endpoint, secret, overlap, MAX_SECRETS)
        if until is None:
            raise _unknown_webhook(endpoint)
        return secret, codec.decode_time(str(until))

    def ping(self, endpoint: str) -> DeliveryRecord:
        """Send a ping to an endpoint; a disabled one is enabled where the ping is delivered."""
        pairs = self._scripts.run("webhooks/ping", self._tenant, endpoint, f"msg_{secrets.token_hex(20)}")
        if pairs is None:
            raise _unknown_webhook(endpoint)
        return DeliveryRecord.from_pairs(pairs)


def _decode_endpoint(stored: str) -> WebhookEndpoint:
    fields = json.loads(stored)
    times = {
        name: codec.decode_time(fields[name]) for name in ("created_at", "disabled_at") if name in fields
    }
    return WebhookEndpoint(**(fields | times))


def _unknown_webhook(endpoint: str) -> UnknownWebhook:
    return UnknownWebhook(f"there is no webhook {endpoint[:64]!r}")
