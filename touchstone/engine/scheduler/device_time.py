"""Who is next on a device, by the seconds that each has had of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_ACCOUNTS = 256
"""Accounts that are kept; beyond that the one is forgotten that was not charged for the longest."""


class DeviceTime(Generic[K]):
    """Seconds of a device that each account has used: start-time fair queueing (Goyal, Vin & Cheng 1996).

    Whoever has used the least is next. An account that asked for nothing for a while does not save up what
    it left to others: when it comes back, it counts as served as much as the one served last.
    """

    def __init__(self) -> None:
        self._used: dict[K, float] = {}
        self._now = 0.0  # what the account served last had used before

    def next(self, accounts: Iterable[K]) -> K:
        """The account that has used the least, of equals the first."""
        starts = {account: max(self._used.get(account, 0.0), self._now) for account in accounts}
        chosen = min(starts, key=starts.__getitem__)
        self._now = starts[chosen]
        return chosen

    def charge(self, account: K, seconds: float) -> None:
        """Add what an account has used."""
        self._used[account] = max(self._used.pop(account, 0.0), self._now) + seconds
        if len(self._used) > MAX_ACCOUNTS:
            del self._used[next(iter(self._used))]
