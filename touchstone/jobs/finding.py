"""Finding jobs: filters are indexes to stand in, times are places, and cursors are signed for both."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

import redis

from touchstone.jobs import cursor as cursors
from touchstone.jobs import wire
from touchstone.jobs.answers import Page
from touchstone.jobs.record import Job, JobKind, Status
from touchstone.jobs.scripts import Scripts, reachable

_LOOKS = 1000
_ROUNDS = 10


@dataclass(frozen=True)
class Filters:
    """What a job must be to be listed; None lets every job pass. `until` itself is outside."""

    status: Status | None = None
    kind: JobKind | None = None
    method: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def indexes(self) -> list[str]:
        """The sorted sets that a job must stand in."""
        named = {"status": self.status, "kind": self.kind, "method": self.method, "model": self.model}
        return ["ts:all", *(f"ts:{name}:{value}" for name, value in named.items() if value)]

    def signed(self) -> list[str]:
        """What a cursor is good for: this list and no other."""
        times = {"since": self.since, "until": self.until}
        return [*self.indexes(), *(f"{name} {wire.ticks(at)}" for name, at in times.items() if at)]


class Finder:
    """Lists of jobs, newest first, a page at a time."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts
        self._secret: bytes | None = None

    def find(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        """See `Ledger.find`."""
        indexes, place, last = filters.indexes(), self._first(filters, cursor), self._last(filters)
        jobs: list[Job] = []
        for _ in range(_ROUNDS):
            place, found = self._scripts.run("find", place, last, limit - len(jobs), _LOOKS, *indexes)
            jobs += [wire.job(pairs) for pairs in found]
            if not place or len(jobs) == limit:
                break
        more = bool(place) and any(self._scripts.run("find", place, last, 1, _LOOKS, *indexes))
        return Page(tuple(jobs), self._cursor(place, filters) if more else None)

    def _first(self, filters: Filters, cursor: str | None) -> str:
        """The place below which a page begins."""
        if cursor:
            return f"({cursors.read(cursor, filters.signed(), self._signature())}"
        return f"({self._place(filters.until)}" if filters.until else "+inf"

    def _last(self, filters: Filters) -> str:
        return self._place(filters.since) if filters.since else "-inf"

    def _place(self, moment: datetime) -> str:
        """Where the jobs begin that were accepted then or later."""
        return str(self._scripts.run("place", wire.ticks(moment)))

    def _cursor(self, place: str, filters: Filters) -> str:
        return cursors.write(int(place.removeprefix("(")), filters.signed(), self._signature())

    def _signature(self) -> bytes:
        """The secret that signs cursors: whichever process came first made it."""
        if self._secret is None:
            with reachable():
                self._client.set("ts:secret", secrets.token_hex(32), nx=True)
                self._secret = str(self._client.get("ts:secret")).encode()
        return self._secret
