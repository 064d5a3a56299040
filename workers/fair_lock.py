"""A lock that is fair to tenants: they take turns, and waiters of one tenant are served first come, first
served.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count


class FairLock:
    """A lock for one holder at a time; many waiters of one tenant delay another tenant by one turn only.

    The order is that of `claim.lua` with a single slot: next is the tenant whose last turn is the longest
    ago. Turns are remembered while anyone waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._last_served: dict[str, int] = {}
        self._numbers = count(1)
        self._locked = False

    @contextmanager
    def wait_in_line(self, tenant: str) -> Iterator[Ticket]:
        """Wait in line for the length of the block."""
        ticket = Ticket(self, tenant)
        with self._changed:
            self._waiting.append(ticket)
        try:
            yield ticket
        finally:
            self._leave(ticket)

    def acquire(self, ticket: Ticket, timeout: float) -> bool:
        """Wait at most `timeout` seconds for this ticket's turn; returns whether it came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_next(ticket), timeout):
                return False
            self._waiting.remove(ticket)
            self._last_served[ticket.tenant] = next(self._numbers)
            self._locked = True
            return True

    def release(self) -> None:
        """End the turn."""
        with self._changed:
            self._locked = False
            if not self._waiting:
                self._last_served.clear()
            self._changed.notify_all()

    def _is_next(self, ticket: Ticket) -> bool:
        first = min(self._waiting, key=lambda waiting: self._last_served.get(waiting.tenant, 0))
        return ticket is first and not self._locked

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class Ticket:
    """A place in the line; implements `touchstone.registration.trial.Lock`."""

    lock: FairLock
    tenant: str

    def acquire(self, *, timeout: float) -> bool:
        """See `FairLock.acquire`."""
        return self.lock.acquire(self, timeout)

    def release(self) -> None:
        """See `FairLock.release`."""
        self.lock.release()
