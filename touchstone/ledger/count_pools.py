"""Counts that certificates of equal questions share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from touchstone.ledger.replies import PooledCounts
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings


class CountPools:
    """Pools of counts; all certificates of a pool draw their samples from one seed."""

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        self._scripts = scripts
        self._expiry_ms = round(settings.counts_days * 86_400_000)

    def read(self, pool: str, seed: int) -> PooledCounts:
        """The counts of a pool so far; where there are none, `seed` becomes the seed of the pool."""
        return self._exchange(pool, seed, 0, "")

    def extend(self, pool: str, counts: Mapping[str, Any]) -> PooledCounts:
        """Store counts of more samples than the pool has; returns what the pool holds then."""
        return self._exchange(pool, counts["seed"], counts["n"], json.dumps(counts))

    def _exchange(self, pool: str, seed: int, n: int, counts: str) -> PooledCounts:
        pool_seed, known = self._scripts.run("jobs/pool", pool, seed, n, counts, self._expiry_ms)
        return PooledCounts(int(pool_seed), json.loads(known) if known else None)
