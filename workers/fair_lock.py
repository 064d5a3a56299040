"""Turns at what is done one at a time: tenants rotate, and each has its own in the order of their coming."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count


class FairLock:
    """Whoever fills the line makes another tenant wait for one turn.

    The turns are those of `claim.lua`, with a single place: the next is whose tenant's last turn is the
    longest ago, which is remembered for as long as anybody waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._last_served: dict[str, int] = {}
        self._numbers = count(1)
        self._locked = False

    @contextmanager
    def wait_in_line(self, tenant: str) -> Iterator[Ticket]:
        """Keep a place in the line while the block lasts."""
        ticket = Ticket(self, tenant)
        with self._changed:
            self._waiting.append(ticket)
        try:
            yield ticket
        finally:
            self._leave(ticket)

    def acquire(self, ticket: Ticket, timeout: float) -> bool:
        """Wait for so many seconds until it is this one's turn; whether it came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_next(ticket), timeout):
                return False
            self._waiting.remove(ticket)
            self._last_served[ticket.tenant] = next(self._numbers)
            self._locked = True
            return True

    def release(self) -> None:
        """The turn that was taken is over."""
        with self._changed:
            self._locked = False
            if not self._waiting:
                self._last_served.clear()
            self._changed.notify_all()

    def _is_next(self, ticket: Ticket) -> bool:
        first = min(self._waiting, key=lambda one: self._last_served.get(one.tenant, 0))
        return ticket is first and not self._locked

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class Ticket:
    """A place in the line; a `touchstone.registration.trial.Lock`."""

    lock: FairLock
    tenant: str

    def acquire(self, *, timeout: float) -> bool:
        """See `FairLock.acquire`."""
        return self.lock.acquire(self, timeout)

    def release(self) -> None:
        """See `FairLock.end`."""
        self.lock.release()
