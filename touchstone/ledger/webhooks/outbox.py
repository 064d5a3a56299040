"""Deliveries to send: a queue in the ledger, with leases and times of the next attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import redis

from touchstone.ledger import codec
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.large_values import LargeValues
from touchstone.ledger.records import Job
from touchstone.ledger.scripts import Scripts
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.deliveries import AttemptOutcome, DeliveryRecord, DeliveryStatus

LEASE_SECONDS = 60.0
MAX_IN_FLIGHT = 32
RESERVE = 16
"""As many more, one each for tenants that have none in flight."""

MAX_PER_TENANT = 16
MAX_PER_RECEIVER = 4


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery to send now, by the holder of this claim."""

    delivery: DeliveryRecord
    claim: int
    tries: int
    receiver: str
    """The tenant and the host."""
    job: Job | None
    signing_secrets: tuple[str, ...]
    at: int
    """Milliseconds of the ledger's clock."""


class Outbox:
    """The deliveries of all tenants, for the processes that send them; each change is one script."""

    def __init__(
        self, client: redis.Redis, scripts: Scripts, large_values: LargeValues, *, days: float
    ) -> None:
        self._client = client
        self._scripts = scripts
        self._large_values = large_values
        self._retention_ms = round(days * 86_400_000)

    def claim(self, in_flight: Mapping[str, int]) -> list[ClaimedDelivery]:
        """Claim what is due, tenants in turns; `in_flight` counts what this process sends by receiver."""
        pairs = [part for pair in in_flight.items() for part in pair]
        at, *taken = self._scripts.run(
            "webhooks/send",
            round(LEASE_SECONDS * 1000),
            self._retention_ms,
            MAX_IN_FLIGHT,
            RESERVE,
            MAX_PER_TENANT,
            MAX_PER_RECEIVER,
            signatures.new_secret(),
            *pairs,
        )
        named = ((codec.decode_pairs(parts[0])["id"], parts) for parts in taken)
        return codec.decode_each("delivery", lambda parts: self._decode_claimed(int(at), *parts), named)

    def record(
        self,
        claimed: ClaimedDelivery,
        outcome: AttemptOutcome,
        *,
        retry_after: float | None = None,
        gone: bool = False,
    ) -> bool:
        """Record the outcome of an attempt; false where another claim holds the delivery by now.

        A failed delivery is tried again after `retry_after` seconds, or never where that is None. `gone`
        disables the endpoint.
        """
        again: DeliveryStatus = "failed" if retry_after is None else "pending"
        status = again if outcome.error else "delivered"
        attempt = outcome.model_dump() | {"at": claimed.at}
        answer = self._scripts.run(
            "webhooks/sent",
            claimed.delivery.id,
            claimed.claim,
            status,
            round((retry_after or 0) * 1000),
            json.dumps(attempt),
            "1" if gone else "",
        )
        return bool(answer)

    def _decode_claimed(
        self, at: int, pairs: Sequence[str], job: Sequence[str], signing_secrets: str
    ) -> ClaimedDelivery:
        stored = codec.decode_pairs(pairs)
        valid = [one["secret"] for one in json.loads(signing_secrets) if one.get("good_until", at) >= at]
        return ClaimedDelivery(
            delivery=DeliveryRecord.from_pairs(pairs),
            claim=int(stored["claims"]),
            tries=int(stored["tries"]),
            receiver=stored["receiver"],
            job=self._large_values.complete(codec.decode_job(job)) if job else None,
            signing_secrets=tuple(valid),
            at=at,
        )

    def count_by_status(self) -> dict[DeliveryStatus, int]:
        """How many deliveries there are in each status."""
        statuses: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
        with map_redis_errors(), self._client.pipeline(transaction=False) as pipe:
            for status in statuses:
                pipe.zcard(f"ts:deliveries:status:{status}")
            return dict(zip(statuses, pipe.execute(), strict=True))
