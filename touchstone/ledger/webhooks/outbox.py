"""Deliveries that are to be sent: a queue in the ledger, with leases and times at which to try again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import redis

from touchstone.ledger import codec
from touchstone.ledger.connection import reachable
from touchstone.ledger.records import Job
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import Delivery, DeliveryStatus, Outcome

LEASE_SECONDS = 60.0
MOST_AT_ONCE = 32
MOST_FOR_A_TENANT = 16
MOST_FOR_A_RECEIVER = 4


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


class Outbox:
    """The deliveries of all tenants, for whoever sends them; each change is one script."""

    def __init__(self, client: redis.Redis, scripts: Scripts, *, days: float) -> None:
        self._client = client
        self._scripts = scripts
        self._life = round(days * 86_400_000)

    def claim(self, under_way: Mapping[str, int], *, most: int = MOST_AT_ONCE) -> list[Sending]:
        """Take what is due, a little for each receiver, given how many are under way to each from here."""
        pairs = [part for pair in under_way.items() for part in pair]
        at, *taken = self._scripts.run(
            "webhooks/send",
            round(LEASE_SECONDS * 1000),
            self._life,
            most,
            MOST_FOR_A_TENANT,
            MOST_FOR_A_RECEIVER,
            signatures.new_secret(),
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
            "webhooks/sent",
            sending.delivery.id,
            sending.claim,
            status,
            round((pause or 0) * 1000),
            json.dumps(attempt),
            "1" if unwanted else "",
        )
        return bool(answer)

    def counts(self) -> dict[DeliveryStatus, int]:
        """How many deliveries there are in each status."""
        statuses: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
        with reachable(), self._client.pipeline(transaction=False) as pipe:
            for status in statuses:
                pipe.zcard(f"ts:deliveries:status:{status}")
            return dict(zip(statuses, pipe.execute(), strict=True))


def _sending(at: int, told: Sequence[str], job: Sequence[str], signers: str) -> Sending:
    stored = codec.mapping(told)
    good = [one["secret"] for one in json.loads(signers) if one.get("good_until", at) >= at]
    return Sending(
        delivery=Delivery.of(told),
        claim=int(stored["claims"]),
        tries=int(stored["tries"]),
        receiver=stored["receiver"],
        job=codec.job(job) if job else None,
        signers=tuple(good),
        at=at,
    )
