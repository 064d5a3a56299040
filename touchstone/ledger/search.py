"""Finding things: filters are indexes to stand in, times are places, and cursors are signed for both."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import redis

from touchstone.ledger import codec
from touchstone.ledger import cursor as cursors
from touchstone.ledger.connection import reachable
from touchstone.ledger.records import JobKind, Status
from touchstone.ledger.replies import Page
from touchstone.ledger.scripts import Scripts

_JOB = "ts:job:"
_LOOKS = 1000
_ROUNDS = 10


@dataclass(frozen=True)
class Filters:
    """What a tenant's job must be to be listed; None lets every one pass. `until` itself is outside."""

    tenant: str
    status: Status | None = None
    kind: JobKind | None = None
    method: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def indexes(self) -> list[str]:
        """The sorted sets that a job must stand in."""
        own = f"ts:tenant:{self.tenant}"
        named = {"kind": self.kind, "method": self.method, "model": self.model}
        others = (f"ts:{name}:{value}" for name, value in named.items() if value)
        return [f"{own}:status:{self.status}" if self.status else own, *others]

    def signed(self) -> list[str]:
        """What a cursor is good for: this list and no other."""
        times = {"since": self.since, "until": self.until}
        return [*self.indexes(), *(f"{name} {codec.ticks(at)}" for name, at in times.items() if at)]


@dataclass(frozen=True)
class Walk:
    """A way through all that stands in some indexes, from new to old."""

    prefix: str
    """What the keys of what is looked for begin with."""
    indexes: Sequence[str]
    signed: Sequence[str]
    """What a cursor is good for."""
    first: str = "+inf"
    last: str = "-inf"


class Finder:
    """Lists, newest first, a page at a time."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts
        self._secret: bytes | None = None

    def find(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        """See `Holdings.find`."""
        first = f"({self._place(filters.until)}" if filters.until else "+inf"
        last = self._place(filters.since) if filters.since else "-inf"
        walk = Walk(_JOB, tuple(filters.indexes()), tuple(filters.signed()), first, last)
        found, cursor = self.walk(walk, limit, cursor)
        return Page(tuple(codec.job(pairs) for pairs in found), cursor)

    def walk(self, walk: Walk, limit: int, cursor: str | None) -> tuple[list[list[str]], str | None]:
        """A page of a walk as names and values in turn, and where the next page begins if there is one."""
        place = f"({cursors.read(cursor, walk.signed, self._signature())}" if cursor else walk.first
        found: list[list[str]] = []
        for _ in range(_ROUNDS):
            place, some = self._look(walk, place, limit - len(found))
            found += some
            if not place or len(found) == limit:
                break
        more = bool(place) and any(self._look(walk, place, 1))
        return found, self._cursor(place, walk) if more else None

    def _look(self, walk: Walk, place: str, limit: int) -> tuple[str, list[list[str]]]:
        place, found = self._scripts.run(
            "jobs/find", walk.prefix, place, walk.last, limit, _LOOKS, *walk.indexes
        )
        return place, found

    def _place(self, moment: datetime) -> str:
        """Where the jobs begin that were accepted then or later."""
        return str(self._scripts.run("jobs/place", codec.ticks(moment)))

    def _cursor(self, place: str, walk: Walk) -> str:
        return cursors.write(int(place.removeprefix("(")), walk.signed, self._signature())

    def _signature(self) -> bytes:
        """The secret that signs cursors: whichever process came first made it."""
        if self._secret is None:
            with reachable():
                self._client.set("ts:secret", secrets.token_hex(32), nx=True)
                self._secret = str(self._client.get("ts:secret")).encode()
        return self._secret
