"""Refused keys, counted by address, so that guessing keys is rate-limited.

A key is looked up in any case, so a valid one is never refused because of others from its address.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from touchstone.net.addresses import find_client_network

MINUTE = 60.0
MAX_ADDRESSES = 10_000
"""The most addresses that are kept; the ones refused longest ago are dropped first."""


class FailedKeys:
    """Permits `limit` refused keys a minute from each address; to be called on the event loop."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = MINUTE / limit
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def record(self, address: str) -> float:
        """Count a refused key; returns the seconds to wait where there were too many, otherwise 0."""
        now, whose = self._clock(), find_client_network(address)
        full_at = max(now, self._full_at.get(whose, now)) + self._interval
        if full_at - now > MINUTE:
            return full_at - now - MINUTE
        self._full_at[whose] = full_at
        self._full_at.move_to_end(whose)
        if len(self._full_at) > MAX_ADDRESSES:
            self._full_at.popitem(last=False)
        return 0.0
