"""Forgetting jobs that ended long ago, and deleting the blobs that nobody holds any more.

A blob goes in two steps. What nobody holds is set aside, where it can still be read; after `ASIDE_SECONDS` it
is dropped, unless somebody holds it by then: who found it stored before had that time to do so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from touchstone.ledger.ledger import Ledger
from touchstone.ledger.retention import EXPIRY_BATCH
from touchstone.logs import get_logger
from touchstone.periodic import PeriodicThread
from touchstone.storage.blobs import Blobs

INTERVAL_SECONDS = 10.0
ASIDE_SECONDS = 600.0
ORPHAN_SEARCH_SECONDS = 6 * 3600.0
ORPHAN_AGE_SECONDS = 3600.0
BATCH_SIZE = 1000

_log = get_logger("sweeper")
T = TypeVar("T")


class GarbageCollector(PeriodicThread):
    """Sweeps every ten seconds; as many processes as like may run one."""

    def __init__(self, ledger: Ledger, blobs: Blobs, *, aside_seconds: float = ASIDE_SECONDS) -> None:
        super().__init__("sweeper", self.sweep, INTERVAL_SECONDS)
        self._retention = ledger.retention
        self._blobs = blobs
        self._aside_ms = round(aside_seconds * 1000)

    def sweep(self) -> None:
        """One round."""
        self.expire()
        while loose := self._retention.take_unreferenced(BATCH_SIZE):
            self._set_aside(loose)
        self._drop_or_restore()
        if self._retention.take_turn(ORPHAN_SEARCH_SECONDS):
            self.collect_orphans()

    def expire(self) -> None:
        """Forget all jobs that ended too long ago."""
        while self._retention.expire() == EXPIRY_BATCH:
            pass

    def _set_aside(self, digests: Iterable[str]) -> None:
        at = self._retention.now()
        for digest in digests:
            self._blobs.set_aside(digest, at)

    def _drop_or_restore(self) -> None:
        """Drop what has been set aside for long enough, and put back what somebody holds."""
        before = self._retention.now() - self._aside_ms
        for entries in _batches(entry for entry in self._blobs.list_set_aside() if entry.at <= before):
            held = self._retention.filter_referenced([entry.digest for entry in entries])
            for entry in entries:
                (self._blobs.restore if entry.digest in held else self._blobs.drop)(entry)

    def collect_orphans(self, older_than: float = ORPHAN_AGE_SECONDS) -> None:
        """Set aside what nobody ever held, because whoever stored it died or was refused."""
        name = self._retention.ledger_id()
        if self._blobs.claim_for(name) != name:
            _log.warning("not searched: another ledger than this one used the same blobs first")
            return
        self._blobs.delete_partial_files()
        for digests in _batches(self._blobs.list_older_than(older_than)):
            held = self._retention.filter_referenced(digests)
            self._set_aside(digest for digest in digests if digest not in held)


def _batches(things: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as one question to the ledger may hold."""
    rest = iter(things)
    while part := list(islice(rest, BATCH_SIZE)):
        yield part
