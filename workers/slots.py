"""The places of a worker: how many jobs it runs at once, and whose they may be."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

SLOTS_PER_SPARE = 8
"""One place for so many is added for those who have none."""
CHECK_SECONDS = 0.05


class JobSlots:
    """`most` places for anybody, and an eighth more, at least one, for tenants that have none.

    Nobody else waits for the end of a job because one tenant has filled the worker with long ones.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._freed = threading.Event()
        self.claim_lock = threading.Lock()
        """Held by whoever asks for a job, so that they know what all others have."""

    @property
    def total(self) -> int:
        """How many there are, the spare ones among them."""
        return self._limit + max(1, self._limit // SLOTS_PER_SPARE)

    def busy_tenants(self) -> frozenset[str]:
        """Tenants that may not have another place now; to be asked within the door."""
        with self._lock:
            full = self._used.total() >= self._limit
            return frozenset(self._used) if full else frozenset()

    @contextmanager
    def occupy(self, tenant: str) -> Iterator[None]:
        """A place of this tenant's while the block lasts; to be entered within the door."""
        self._count(tenant, 1)
        try:
            yield
        finally:
            self._count(tenant, -1)
            self._freed.set()

    def _count(self, tenant: str, change: int) -> None:
        with self._lock:
            self._used[tenant] += change
            self._used += Counter()  # forgets who has none

    def wait(self) -> None:
        """Wait until a place is left, or until it is worth looking whether somebody else has come."""
        self._freed.wait(CHECK_SECONDS)
        self._freed.clear()
