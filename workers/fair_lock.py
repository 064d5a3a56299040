"""Turns at what is done one at a time: tenants rotate, and each has its own in the order of their coming."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count


class Turns:
    """Whoever fills the line makes another tenant wait for one turn.

    The turns are those of `claim.lua`, with a single place: the next is whose tenant's last turn is the
    longest ago, which is remembered for as long as anybody waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._latest: dict[str, int] = {}
        self._numbers = count(1)
        self._taken = False

    @contextmanager
    def stand_in_line(self, tenant: str) -> Iterator[Turn]:
        """Keep a place in the line while the block lasts."""
        turn = Turn(self, tenant)
        with self._changed:
            self._waiting.append(turn)
        try:
            yield turn
        finally:
            self._leave(turn)

    def take(self, turn: Turn, timeout: float) -> bool:
        """Wait for so many seconds until it is this one's turn; whether it came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_next(turn), timeout):
                return False
            self._waiting.remove(turn)
            self._latest[turn.tenant] = next(self._numbers)
            self._taken = True
            return True

    def end(self) -> None:
        """The turn that was taken is over."""
        with self._changed:
            self._taken = False
            if not self._waiting:
                self._latest.clear()
            self._changed.notify_all()

    def _is_next(self, turn: Turn) -> bool:
        first = min(self._waiting, key=lambda one: self._latest.get(one.tenant, 0))
        return turn is first and not self._taken

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class Turn:
    """A place in the line; a `touchstone.registration.trial.Gate`."""

    turns: Turns
    tenant: str

    def acquire(self, *, timeout: float) -> bool:
        """See `Turns.take`."""
        return self.turns.take(self, timeout)

    def release(self) -> None:
        """See `Turns.end`."""
        self.turns.end()
