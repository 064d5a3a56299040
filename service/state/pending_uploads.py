"""Uploads in progress, by tenant: a file counts on the disk only once it is complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class PendingUploads:
    """Bytes reserved for uploads. Changed on the event loop alone, and read in any thread."""

    def __init__(self) -> None:
        self._reserved: Counter[str] = Counter()

    @contextmanager
    def reserve(self, tenant: str, size: int) -> Iterator[None]:
        """Reserve so many bytes for as long as the block lasts."""
        self._reserved[tenant] += size
        try:
            yield
        finally:
            self._reserved[tenant] -= size
            if not self._reserved[tenant]:
                del self._reserved[tenant]

    def of(self, tenant: str) -> int:
        """The bytes reserved for one tenant."""
        return self._reserved.get(tenant, 0)

    @property
    def all(self) -> int:
        """The bytes reserved for all tenants."""
        return sum(tuple(self._reserved.values()))
