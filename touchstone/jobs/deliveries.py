"""What receivers of webhooks are to be told: a queue in the ledger, with leases and times to try again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import redis
from pydantic import Field

from touchstone import webhooks
from touchstone.errors import UnknownDelivery, WebhookConflict
from touchstone.jobs import wire
from touchstone.jobs.finding import Finder, Walk
from touchstone.jobs.record import Job, Record
from touchstone.jobs.scripts import Scripts, reachable

LEASE_SECONDS = 60.0
MOST_AT_ONCE = 32
MOST_FOR_A_TENANT = 16
MOST_FOR_A_RECEIVER = 4

EventType = Literal["job.succeeded", "job.failed", "job.canceled", "webhook.ping"]
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


class Outcome(Record):
    """How a try went. Of what the receiver said nothing is kept but the status."""

    status: int | None = Field(None, description="What the receiver answered, if it did.")
    error: AttemptError | None = Field(None, description="What was wrong, if anything was.")
    ms: int = Field(description="Milliseconds that it took.")


class Attempt(Outcome):
    """A try to deliver."""

    at: datetime


class Delivery(Record):
    """One thing that one receiver is told; `endpoint` is None where a submission named the URL."""

    id: str
    type: EventType
    status: DeliveryStatus
    tenant: str
    endpoint: str | None
    url: str
    job: str | None
    created_at: datetime
    due_at: datetime | None
    attempts: tuple[Attempt, ...]

    @classmethod
    def of(cls, pairs: Sequence[str]) -> Delivery:
        """Read one from the names and values of its hash."""
        stored = wire.mapping(pairs)
        return cls(
            **{name: stored[name] for name in ("id", "type", "status", "tenant", "url")},
            endpoint=stored["endpoint"] or None,
            job=stored["job"] or None,
            created_at=wire.moment(stored["created_at"]),
            due_at=wire.moment(stored["due"]) if "due" in stored else None,
            attempts=tuple(map(_attempt, json.loads(stored["attempts"]))),
        )


def _attempt(stored: dict[str, Any]) -> Attempt:
    return Attempt(**(stored | {"at": wire.moment(stored["at"])}))


@dataclass(frozen=True)
class Sending:
    """A delivery that is to be sent now, by whoever holds this claim of it."""

    delivery: Delivery
    claim: int
    tries: int
    receiver: str
    """The tenant and the host."""
    job: Job | None
    signers: tuple[str, ...]
    at: int
    """Milliseconds of the ledger's clock."""


class Deliveries:
    """All deliveries; each change is one script, as those of jobs are."""

    def __init__(self, client: redis.Redis, scripts: Scripts, finder: Finder, *, days: float) -> None:
        self._client = client
        self._scripts = scripts
        self._finder = finder
        self._life = round(days * 86_400_000)

    def find(
        self,
        tenant: str,
        *,
        status: DeliveryStatus | None = None,
        endpoint: str | None = None,
        job: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Delivery], str | None]:
        """A tenant's deliveries that fit, newest first, and where the next page begins if there is one."""
        named = {"tenant": tenant, "status": status, "endpoint": endpoint, "job": job}
        indexes = [f"ts:deliveries:{name}:{value}" for name, value in named.items() if value]
        found, cursor = self._finder.walk(Walk("ts:delivery:", indexes, indexes), limit, cursor)
        return [Delivery.of(pairs) for pairs in found], cursor

    def counts(self) -> dict[DeliveryStatus, int]:
        """How many there are in each status, whosesoever."""
        statuses: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
        with reachable(), self._client.pipeline(transaction=False) as pipe:
            for status in statuses:
                pipe.zcard(f"ts:deliveries:status:{status}")
            return dict(zip(statuses, pipe.execute(), strict=True))

    def read(self, tenant: str, delivery: str) -> Delivery:
        """One of the tenant's; `UnknownDelivery` where there is none."""
        with reachable():
            stored: Any = self._client.hgetall(f"ts:delivery:{delivery}")
        if stored.get("tenant") != tenant:
            raise _unknown(delivery)
        return Delivery.of([text for pair in stored.items() for text in pair])

    def replay(self, tenant: str, delivery: str) -> Delivery:
        """Send one as if it had never been tried; `WebhookConflict` where its endpoint is off or gone."""
        verdict = self._scripts.run("replay", tenant, delivery)
        if verdict == "unknown":
            raise _unknown(delivery)
        if verdict == "endpoint_deleted":
            raise WebhookConflict("the endpoint was deleted, so nothing can be sent there")
        if verdict == "endpoint_disabled":
            raise WebhookConflict("the endpoint is switched off; a ping that arrives switches it on")
        return self.read(tenant, delivery)

    def claim(self, under_way: Mapping[str, int], *, most: int = MOST_AT_ONCE) -> list[Sending]:
        """Take what is due, a little for each receiver, given how many are under way to each from here."""
        pairs = [part for pair in under_way.items() for part in pair]
        at, *taken = self._scripts.run(
            "send",
            round(LEASE_SECONDS * 1000),
            self._life,
            most,
            MOST_FOR_A_TENANT,
            MOST_FOR_A_RECEIVER,
            webhooks.new_secret(),
            *pairs,
        )
        return [_sending(int(at), *parts) for parts in taken]

    def note(
        self, sending: Sending, outcome: Outcome, *, pause: float | None = None, unwanted: bool = False
    ) -> bool:
        """Write down how a try went; false where another holds the delivery by now.

        One that failed is tried again after `pause` seconds, or never where that is None. `unwanted` switches
        the endpoint off.
        """
        again: DeliveryStatus = "failed" if pause is None else "pending"
        status = again if outcome.error else "delivered"
        attempt = outcome.model_dump() | {"at": sending.at}
        answer = self._scripts.run(
            "sent",
            sending.delivery.id,
            sending.claim,
            status,
            round((pause or 0) * 1000),
            json.dumps(attempt),
            "1" if unwanted else "",
        )
        return bool(answer)


def _sending(at: int, told: Sequence[str], job: Sequence[str], signers: str) -> Sending:
    stored = wire.mapping(told)
    good = [one["secret"] for one in json.loads(signers) if one.get("good_until", at) >= at]
    return Sending(
        delivery=Delivery.of(told),
        claim=int(stored["claims"]),
        tries=int(stored["tries"]),
        receiver=stored["receiver"],
        job=wire.job(job) if job else None,
        signers=tuple(good),
        at=at,
    )


def _unknown(delivery: str) -> UnknownDelivery:
    return UnknownDelivery(f"there is no delivery {delivery[:64]!r}")
