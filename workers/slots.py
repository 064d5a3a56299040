"""The slots of a worker: how many jobs it runs at once, and of which tenants."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

SLOTS_PER_SPARE = 8
"""One spare slot is added for so many, for tenants that have none."""
CHECK_SECONDS = 0.05


class JobSlots:
    """`limit` slots for all tenants, and an eighth more, at least one, for tenants that have none.

    So a tenant that fills the worker with long jobs does not delay the others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._freed = threading.Event()
        self.claim_lock = threading.Lock()
        """Held while a job is claimed, so that the slots in use do not change meanwhile."""

    @property
    def total(self) -> int:
        """All slots, spare ones included."""
        return self._limit + max(1, self._limit // SLOTS_PER_SPARE)

    def busy_tenants(self) -> frozenset[str]:
        """Tenants that may not get another slot now; call it while holding `claim_lock`."""
        with self._lock:
            full = self._used.total() >= self._limit
            return frozenset(self._used) if full else frozenset()

    @contextmanager
    def occupy(self, tenant: str) -> Iterator[None]:
        """Occupy a slot during the block; enter it while holding `claim_lock`."""
        self._count(tenant, 1)
        try:
            yield
        finally:
            self._count(tenant, -1)
            self._freed.set()

    def _count(self, tenant: str, change: int) -> None:
        with self._lock:
            self._used[tenant] += change
            self._used += Counter()  # drops tenants that have none

    def wait(self) -> None:
        """Wait until a slot is freed, or briefly, because a job of another tenant may have been accepted."""
        self._freed.wait(CHECK_SECONDS)
        self._freed.clear()
