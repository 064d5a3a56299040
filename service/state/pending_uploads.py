"""Files that are on their way to the disk, by tenant: none of them is counted there before it is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class PendingUploads:
    """Bytes that are expected. Changed on the event loop alone, and read in any thread."""

    def __init__(self) -> None:
        self._reserved: Counter[str] = Counter()

    @contextmanager
    def reserve(self, tenant: str, size: int) -> Iterator[None]:
        """Count so many bytes at most for as long as the block lasts."""
        self._reserved[tenant] += size
        try:
            yield
        finally:
            self._reserved[tenant] -= size
            if not self._reserved[tenant]:
                del self._reserved[tenant]

    def of(self, tenant: str) -> int:
        """What comes from one tenant."""
        return self._reserved.get(tenant, 0)

    @property
    def all(self) -> int:
        """What comes from everybody."""
        return sum(tuple(self._reserved.values()))
