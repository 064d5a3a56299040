"""Deletes expired jobs and unreferenced blobs.

A blob is deleted in two steps. An unreferenced one is set aside, where it can still be read; after
`ASIDE_SECONDS` it is dropped, unless it is referenced by then: a process that found it stored before had that
time to do so.
"""

from __future__ import annotations

from collections.abc import Iterable

from touchstone.ledger.ledger import Ledger
from touchstone.ledger.retention import EXPIRY_BATCH
from touchstone.logs import get_logger
from touchstone.periodic import PeriodicThread
from touchstone.storage.blobs import Blobs
from touchstone.storage.layout import split_batches

INTERVAL_SECONDS = 10.0
ASIDE_SECONDS = 600.0
ORPHAN_SEARCH_SECONDS = 6 * 3600.0
ORPHAN_AGE_SECONDS = 3600.0
BATCH_SIZE = 1000

_log = get_logger("sweeper")


class GarbageCollector(PeriodicThread):
    """Sweeps every ten seconds; any number of processes may run one."""

    def __init__(self, ledger: Ledger, blobs: Blobs, *, aside_seconds: float = ASIDE_SECONDS) -> None:
        super().__init__("sweeper", self.sweep, INTERVAL_SECONDS)
        self._retention = ledger.retention
        self._blobs = blobs
        self._aside_ms = round(aside_seconds * 1000)

    def sweep(self) -> None:
        """One round."""
        self.expire()
        while unreferenced := self._retention.take_unreferenced(BATCH_SIZE):
            self._set_aside(unreferenced)
        self._drop_or_restore()
        if self._retention.take_turn(ORPHAN_SEARCH_SECONDS):
            self.collect_orphans()

    def expire(self) -> None:
        """Delete all expired jobs, and of those that ended some time ago most events."""
        while self._retention.expire() == EXPIRY_BATCH:
            pass
        while self._retention.cut_events() == EXPIRY_BATCH:
            pass

    def _set_aside(self, digests: Iterable[str]) -> None:
        at = self._retention.now()
        for digest in digests:
            self._blobs.set_aside(digest, at)

    def _drop_or_restore(self) -> None:
        """Drop what has been set aside for long enough, and restore what is referenced again."""
        before = self._retention.now() - self._aside_ms
        due = (entry for entry in self._blobs.list_set_aside() if entry.at <= before)
        for entries in split_batches(due, BATCH_SIZE):
            referenced = self._retention.filter_referenced([entry.digest for entry in entries])
            for entry in entries:
                (self._blobs.restore if entry.digest in referenced else self._blobs.drop)(entry)

    def collect_orphans(self, older_than: float = ORPHAN_AGE_SECONDS) -> None:
        """Set aside blobs that were never referenced, because the process that stored them died or was
        refused.
        """
        name = self._retention.ledger_id()
        if self._blobs.claim_for(name) != name:
            _log.warning("not searched: another ledger than this one used the same blobs first")
            return
        self._blobs.delete_partial_files()
        for digests in split_batches(self._blobs.list_older_than(older_than), BATCH_SIZE):
            referenced = self._retention.filter_referenced(digests)
            self._set_aside(digest for digest in digests if digest not in referenced)
