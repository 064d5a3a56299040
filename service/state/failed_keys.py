"""Refused keys, counted by the address that they came from: who sends one after the other is told to wait.

A key is looked up in any case, so a good one is never refused for what else came from its address.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network

MINUTE = 60.0
MAX_ADDRESSES = 10_000
"""So many are remembered; of more, those that were refused the longest time ago are forgotten."""

_IPV6_PREFIX = 64
"""Whoever has one IPv6 address has as many as these leave."""


class FailedKeys:
    """Lets `most` refused keys a minute come from an address; to be asked on the event loop."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = MINUTE / limit
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def record(self, address: str) -> float:
        """Count a key that was refused; the seconds to wait where they were too many, otherwise 0."""
        now, whose = self._clock(), _network(address)
        full_at = max(now, self._full_at.get(whose, now)) + self._interval
        if full_at - now > MINUTE:
            return full_at - now - MINUTE
        self._full_at[whose] = full_at
        self._full_at.move_to_end(whose)
        if len(self._full_at) > MAX_ADDRESSES:
            self._full_at.popitem(last=False)
        return 0.0


def _network(address: str) -> str:
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if known.version == 4:
        return str(known)
    return str(known.ipv4_mapped or ip_network((int(known), _IPV6_PREFIX), strict=False))
