"""Measurements of loaded models, by digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from touchstone.ledger.codec import decode_probe
from touchstone.ledger.connection import map_redis_errors
from touchstone.models.measurements import Probe

EXPIRY_SECONDS = 30 * 86_400


class Probes:
    """What the last load of each model measured; equal bytes are equally fast for all tenants."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def store(self, digest: str, probe: Probe) -> None:
        """Store for a month what the last load of the model with this digest measured."""
        with map_redis_errors():
            self._client.set(f"ts:probe:{digest}", probe.model_dump_json(), ex=EXPIRY_SECONDS)

    def read(self, digests: Sequence[str]) -> dict[str, Probe]:
        """The probes of the models with these digests; without those that were never loaded."""
        with map_redis_errors():
            stored: Any = self._client.mget([f"ts:probe:{digest}" for digest in digests]) if digests else []
        found = zip(digests, map(decode_probe, stored), strict=True)
        return {digest: probe for digest, probe in found if probe is not None}
