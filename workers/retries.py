"""Calls that are repeated while the ledger is unreachable or the disk full."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from touchstone.errors import LedgerUnavailable, StorageFull
from workers.lease_keeper import LeaseKeeper

RETRY_SECONDS = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    """Repeats calls until they succeed or the worker stops.

    Finished work must not be lost because the ledger restarts meanwhile.
    """

    keeper: LeaseKeeper

    def __call__(self, action: Callable[[], T], *, seconds: float = float("inf")) -> T:
        """The result of the call, retried for at most so many seconds."""
        end = time.monotonic() + seconds
        while True:
            try:
                return action()
            except (LedgerUnavailable, StorageFull):
                if self.keeper.stopping or time.monotonic() > end:
                    raise
                time.sleep(RETRY_SECONDS)
