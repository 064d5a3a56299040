"""Forgetting jobs that ended long ago, and deleting the blobs that nobody holds any more.

A blob goes in two steps. What nobody holds is set aside, where it can still be read; after `ASIDE_SECONDS` it
is dropped, unless somebody holds it by then: who found it stored before had that time to do so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from touchstone.ledger.ledger import Ledger
from touchstone.ledger.retention import EXPIRED_AT_ONCE
from touchstone.logs import get_logger
from touchstone.periodic import Rounds
from touchstone.storage.blobs import Blobs

PAUSE_SECONDS = 10.0
ASIDE_SECONDS = 600.0
SEARCH_SECONDS = 6 * 3600.0
ORPHAN_SECONDS = 3600.0
AT_ONCE = 1000

_log = get_logger("sweeper")
T = TypeVar("T")


class Sweeper(Rounds):
    """Sweeps every ten seconds; as many processes as like may run one."""

    def __init__(self, ledger: Ledger, blobs: Blobs, *, aside_seconds: float = ASIDE_SECONDS) -> None:
        super().__init__("sweeper", self.sweep, PAUSE_SECONDS)
        self._keeping = ledger.keeping
        self._blobs = blobs
        self._patience = round(aside_seconds * 1000)

    def sweep(self) -> None:
        """One round."""
        self.expire()
        while loose := self._keeping.take_loose(AT_ONCE):
            self._set_aside(loose)
        self._settle()
        if self._keeping.take_turn(SEARCH_SECONDS):
            self.search()

    def expire(self) -> None:
        """Forget all jobs that ended too long ago."""
        while self._keeping.expire() == EXPIRED_AT_ONCE:
            pass

    def _set_aside(self, digests: Iterable[str]) -> None:
        at = self._keeping.now()
        for digest in digests:
            self._blobs.set_aside(digest, at)

    def _settle(self) -> None:
        """Drop what has been set aside for long enough, and put back what somebody holds."""
        before = self._keeping.now() - self._patience
        for entries in _parts(entry for entry in self._blobs.aside() if entry.at <= before):
            held = self._keeping.held([entry.digest for entry in entries])
            for entry in entries:
                (self._blobs.restore if entry.digest in held else self._blobs.drop)(entry)

    def search(self, older_than: float = ORPHAN_SECONDS) -> None:
        """Set aside what nobody ever held, because whoever stored it died or was refused."""
        name = self._keeping.name()
        if self._blobs.owner(name) != name:
            _log.warning("not searched: another ledger than this one used the same blobs first")
            return
        self._blobs.tidy()
        for digests in _parts(self._blobs.older_than(older_than)):
            held = self._keeping.held(digests)
            self._set_aside(digest for digest in digests if digest not in held)


def _parts(things: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as one question to the ledger may hold."""
    rest = iter(things)
    while part := list(islice(rest, AT_ONCE)):
        yield part
