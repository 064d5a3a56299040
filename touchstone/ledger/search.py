"""Search: filters are indexes, times are positions, and cursors are signed for both."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import redis

from touchstone.ledger import codec, cursor as cursors
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.large_values import LargeValues
from touchstone.ledger.records import JobKind, Status
from touchstone.ledger.replies import JobPage
from touchstone.ledger.scripts import Scripts

PAGE_BYTES = 2 * 2**20
"""Of the entries of a page: one more is not begun after these. Two hundred jobs have a third of it."""

_JOB = "ts:job:"
_SCAN_LIMIT = 1000
_MAX_SCANS = 10


@dataclass(frozen=True)
class Filters:
    """Filters of a tenant's jobs; None matches every job. `until` itself is excluded."""

    tenant: str
    status: Status | None = None
    kind: JobKind | None = None
    method: str | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def indexes(self) -> list[str]:
        """The sorted sets that a job must be in."""
        own = f"ts:tenant:{self.tenant}"
        named = {"kind": self.kind, "method": self.method, "model": self.model}
        others = (f"ts:{name}:{value}" for name, value in named.items() if value)
        return [f"{own}:status:{self.status}" if self.status else own, *others]

    def cursor_scope(self) -> list[str]:
        """The list that a cursor is valid for."""
        times = {"since": self.since, "until": self.until}
        return [*self.indexes(), *(f"{name} {codec.encode_time(at)}" for name, at in times.items() if at)]


@dataclass(frozen=True)
class IndexScan:
    """A scan of all entries that are in each of some indexes, from new to old."""

    prefix: str
    """The prefix of the keys of the entries."""
    indexes: Sequence[str]
    cursor_scope: Sequence[str]
    """The list that a cursor is valid for."""
    first: str = "+inf"
    last: str = "-inf"


class Finder:
    """Lists, newest first, a page at a time."""

    def __init__(self, client: redis.Redis, scripts: Scripts, large_values: LargeValues) -> None:
        self._client = client
        self._scripts = scripts
        self._large_values = large_values
        self._secret: bytes | None = None

    def find(self, filters: Filters, limit: int, cursor: str | None) -> JobPage:
        """See `TenantLedger.find`."""
        first = f"({self._position_at(filters.until)}" if filters.until else "+inf"
        last = self._position_at(filters.since) if filters.since else "-inf"
        scan = IndexScan(_JOB, tuple(filters.indexes()), tuple(filters.cursor_scope()), first, last)
        found, cursor = self.scan(scan, limit, cursor)
        jobs = codec.decode_each("job", codec.decode_job, codec.name_pairs(found))
        return JobPage(tuple(map(self._large_values.complete, jobs)), cursor)

    def scan(self, scan: IndexScan, limit: int, cursor: str | None) -> tuple[list[list[str]], str | None]:
        """A page of a scan as names and values in turn, and the cursor of the next page if there is one.

        A page ends early once its entries, with their large values, have `PAGE_BYTES`.
        """
        position = (
            f"({cursors.decode_cursor(cursor, scan.cursor_scope, self._signing_secret())}"
            if cursor
            else scan.first
        )
        found: list[list[str]] = []
        room = PAGE_BYTES
        for _ in range(_MAX_SCANS):
            position, some, size = self._scan_batch(scan, position, limit - len(found), room)
            found += some
            room -= size
            if not position or len(found) == limit or room <= 0:
                break
        more = bool(position) and any(self._scan_batch(scan, position, 1, 1)[:2])
        return found, self._encode_cursor(position, scan) if more else None

    def _scan_batch(
        self, scan: IndexScan, position: str, limit: int, room: int
    ) -> tuple[str, list[list[str]], int]:
        position, found, size = self._scripts.run(
            "jobs/find", scan.prefix, position, scan.last, limit, _SCAN_LIMIT, room, *scan.indexes
        )
        return position, found, size

    def _position_at(self, moment: datetime) -> str:
        """The position from which on jobs were accepted then or later."""
        return str(self._scripts.run("jobs/place", codec.encode_time(moment)))

    def _encode_cursor(self, position: str, scan: IndexScan) -> str:
        return cursors.encode_cursor(
            int(position.removeprefix("(")), scan.cursor_scope, self._signing_secret()
        )

    def _signing_secret(self) -> bytes:
        """The secret that signs cursors; the first process made it."""
        if self._secret is None:
            with map_redis_errors():
                self._client.set("ts:secret", secrets.token_hex(32), nx=True)
                self._secret = str(self._client.get("ts:secret")).encode()
        return self._secret
