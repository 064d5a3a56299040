"""How much may still be accepted, as the last acceptances told: where that is plenty, nobody has to ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS = 1.0
"""How long an answer counts."""

JOBS = 1000
"""Plenty is room for so many jobs: more than all processes together accept in that time."""

_MAX_TENANTS = 10_000


@dataclass(frozen=True)
class _Room:
    """What was left of the queue and of a tenant's quotas; None is no limit."""

    until: float
    jobs: int
    passes: int | None
    storage: int | None

    def has_plenty(self, passes: int, size: int) -> bool:
        return (
            time.monotonic() < self.until
            and self.jobs >= JOBS
            and (self.passes is None or self.passes >= JOBS * passes)
            and (self.storage is None or self.storage >= JOBS * size)
        )


class Headroom:
    """What is left for each tenant; may be used from many threads."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    def note(self, tenant: str, left: Sequence[int]) -> None:
        """Note what an acceptance left: places in the queue, passes and bytes; negative is no limit."""
        if len(self._rooms) >= _MAX_TENANTS:
            self._rooms.clear()
        jobs, passes, storage = left
        self._rooms[tenant] = _Room(time.monotonic() + SECONDS, jobs, _limit(passes), _limit(storage))

    def forget(self, tenant: str) -> None:
        """Ask again: something was refused, or the quota is another."""
        self._rooms.pop(tenant, None)

    def is_plenty(self, tenant: str, passes: int, size: int) -> bool:
        """Whether a thousand jobs of so many passes and bytes would have been accepted within the last
        second.
        """
        room = self._rooms.get(tenant)
        return room is not None and room.has_plenty(passes, size)


def _limit(left: int) -> int | None:
    return None if left < 0 else left
