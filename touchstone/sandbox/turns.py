"""Turns of tenants at something that only a few calls can have at once."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from touchstone.engine.scheduler.device_time import DeviceTime


@dataclass(eq=False)
class Turn:
    """A call that waits for its turn, or has it since `began`."""

    tenant: str
    announce: Callable[[], None]
    began: float | None = None


class Turns:
    """Some places, given to tenants in turns: next is the tenant that holds the fewest, among equals the one
    that has had them for the shortest time (`DeviceTime`); its calls are served first come, first served.

    Besides `places` there are `reserve` more, for tenants that hold none: whoever holds all others for long
    delays nobody else.
    """

    def __init__(self, places: int, *, reserve: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._places = places
        self._reserve = reserve
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[Turn]] = {}
        self._time = DeviceTime[str]()

    def join(self, tenant: str, announce: Callable[[], None]) -> Turn:
        """Wait for a turn; `announce` is called once it has come, perhaps at once, in any thread. `leave`
        must follow.
        """
        turn = Turn(tenant, announce)
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append(turn)
            self._announce()
        return turn

    def leave(self, turn: Turn) -> None:
        """End a turn and charge its tenant with the time, or no longer wait for it."""
        with self._lock:
            if turn.began is None:
                self._stop_waiting(turn)
                return
            self._time.charge(turn.tenant, self._clock() - turn.began)
            self._held[turn.tenant] -= 1
            self._held += Counter()  # drops zeros
            self._announce()

    @contextmanager
    def hold(self, tenant: str) -> Iterator[None]:
        """Wait for a turn in this thread, and have it for the length of the block."""
        come = threading.Event()
        turn = self.join(tenant, come.set)
        try:
            come.wait()
            yield
        finally:
            self.leave(turn)

    def _announce(self) -> None:
        """Begin all turns that have come."""
        while entitled := self._find_entitled():
            turn = self._waiting[self._time.next(entitled)][0]
            self._stop_waiting(turn)
            self._held[turn.tenant] += 1
            turn.began = self._clock()
            turn.announce()

    def _find_entitled(self) -> list[str]:
        """The tenants that wait and hold the fewest places, if one is free for them."""
        fewest = min((self._held[tenant] for tenant in self._waiting), default=0)
        if self._held.total() >= self._places + (0 if fewest else self._reserve):
            return []
        return [tenant for tenant in self._waiting if self._held[tenant] == fewest]

    def _stop_waiting(self, turn: Turn) -> None:
        waiting = self._waiting[turn.tenant]
        waiting.remove(turn)
        if not waiting:
            del self._waiting[turn.tenant]
