"""A campaign: faults one after the other while clients go on, then the whole evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from chaos.book import Claim, ClientEvent, FaultStrike, Journal, ReceivedMessage, WorkerLoss, read
from chaos.checker import Evidence
from chaos.client import Load
from chaos.faults import Fault
from chaos.report import History
from chaos.site import Site, wait_until
from touchstone.errors import UnknownArtifact
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.storage.blobs import Blobs, open_blobs

CLIENTS = 16
QUIET_SECONDS = 60.0

ReportLine = Callable[[str], object]
T = TypeVar("T")
ReadPage = Callable[..., tuple[Sequence[T], str | None]]
"""Turns to a page of a list: what stands there, and where the next begins."""


@contextmanager
def site(
    home: Path, *, workers: int = 4, lease: float = 1.0, hang: float = 2.0, concurrency: int = 2
) -> Iterator[Site]:
    """A service to strike at. Its workers hold few jobs at once, so that a strike hits some and not all."""
    found = Site(home, workers=workers, lease=lease, hang=hang, concurrency=concurrency)
    try:
        yield found
    finally:
        found.close()


def run(site: Site, faults: Sequence[Fault], *, scale: float = 1.0, report: ReportLine) -> None:
    """Strike with every fault as often as it says, times `scale`; returns when all jobs should have ended and
    all who wanted to hear of it should have.
    """
    strikes, client = Journal(site.home / "blows.jsonl"), Journal(site.home / "client.jsonl")
    load = Load(site.port, client, CLIENTS, webhook=site.receiver.url())
    try:
        for fault in faults:
            begun = time.monotonic()
            load.fault = fault.name
            for _ in range(max(1, round(scale * fault.times))):
                strikes.write(_strike(fault, site))
            site.wait_until_working()
            report(f"{fault.name}: {time.monotonic() - begun:.1f} s")
    finally:
        load.stop(QUIET_SECONDS)
        with suppress(TimeoutError):  # the table says how many were told
            wait_until(lambda: not site.ledger.outbox.count_by_status()["pending"], QUIET_SECONDS)
        strikes.close()
        client.close()


def _strike(fault: Fault, site: Site) -> FaultStrike:
    at = time.time()
    fault.strike(site)
    return FaultStrike(fault.name, at, time.time())


def gather(site: Site) -> Evidence:
    """Everything that the checker needs to know."""
    jobs = {job.id: job for job in _read_all(_job_pages(site.ledger))}
    events = {job: site.ledger.events(job, limit=10_000) for job in jobs}
    blobs = open_blobs(site.settings)
    entries = read(site.home / "client.jsonl", ClientEvent)
    heard = read(site.home / "heard.jsonl", ReceivedMessage)
    deliveries = _read_all(TenantLedger.of(site.ledger, LOCAL).deliveries.find)
    return Evidence(entries, jobs, events, _BlobCheck(blobs), site.settings.max_attempts, deliveries, heard)


def tracebacks(home: Path) -> Iterator[str]:
    """What API and workers logged of errors that nobody had foreseen."""
    for log in home.glob("*.log"):
        yield from (line for line in log.read_text("utf-8", "replace").splitlines() if "Traceback" in line)


def history(home: Path) -> History:
    """What was done in a campaign, and who worked on what."""
    return History(
        read(home / "blows.jsonl", FaultStrike),
        read(home / "losses.jsonl", WorkerLoss),
        read(home / "claims.jsonl", Claim),
    )


def _job_pages(ledger: Ledger) -> ReadPage[Job]:
    def read_page(**place: Any) -> tuple[Sequence[Job], str | None]:
        page = TenantLedger.of(ledger, LOCAL).find(**place)
        return page.jobs, page.cursor

    return read_page


def _read_all(read_page: ReadPage[T]) -> list[T]:
    """What stands on all pages of a list."""
    found, cursor = read_page(limit=200)
    things = [*found]
    while cursor is not None:
        found, cursor = read_page(limit=200, cursor=cursor)
        things += found
    return things


class _BlobCheck:
    """Whether a blob is there and is what its digest says; looks at each once."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[str, bool] = {}

    def __call__(self, digest: str) -> bool:
        if digest not in self._known:
            self._known[digest] = self._check(digest)
        return self._known[digest]

    def _check(self, digest: str) -> bool:
        try:
            self._blobs.get(digest)
        except UnknownArtifact:
            return False
        return True
