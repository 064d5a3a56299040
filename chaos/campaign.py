"""A campaign: faults one after the other under load, then the evidence for the checker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from chaos.checker import Evidence
from chaos.client import Load
from chaos.faults import Fault
from chaos.journal import Claim, ClientEvent, FaultStrike, Journal, ReceivedMessage, WorkerLoss, read
from chaos.report import History
from chaos.site import Site, wait_until
from touchstone.errors import UnknownArtifact
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.storage.blobs import Blobs, open_blobs

CLIENTS = 16
QUIET_SECONDS = 420.0

ReportLine = Callable[[str], object]
T = TypeVar("T")
ReadPage = Callable[..., tuple[Sequence[T], str | None]]
"""Reads a page of a list: its items, and the cursor of the next page."""


@contextmanager
def site(
    home: Path, *, workers: int = 4, lease: float = 1.0, hang: float = 2.0, concurrency: int = 2
) -> Iterator[Site]:
    """A service to inject faults into. Its workers run few jobs at once, so that a fault hits some and not
    all.
    """
    site = Site(home, workers=workers, lease=lease, hang=hang, concurrency=concurrency)
    try:
        wait_until(site.is_ready)
        yield site
    finally:
        site.close()


def run(site: Site, faults: Sequence[Fault], *, scale: float = 1.0, report: ReportLine) -> None:
    """Inject every fault as often as it says, times `scale`. Returns when all jobs should have ended and all
    webhooks should have been delivered.
    """
    strikes, client = Journal(site.home / "strikes.jsonl"), Journal(site.home / "client.jsonl")
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
        with suppress(TimeoutError):  # the table shows how many were delivered
            wait_until(lambda: not site.ledger.outbox.count_by_status()["pending"], QUIET_SECONDS)
        strikes.close()
        client.close()


def _strike(fault: Fault, site: Site) -> FaultStrike:
    at = time.time()
    fault.strike(site)
    return FaultStrike(fault.name, at, time.time())


def gather(site: Site) -> Evidence:
    """Everything that the checker reads."""
    jobs = {job.id: job for job in _read_all(_job_pages(site.ledger))}
    events = {job: site.ledger.events(job, limit=10_000) for job in jobs}
    blobs = open_blobs(site.settings)
    entries = read(site.home / "client.jsonl", ClientEvent)
    received = read(site.home / "received.jsonl", ReceivedMessage)
    deliveries = _read_all(TenantLedger.of(site.ledger, LOCAL).deliveries.find)
    return Evidence(entries, jobs, events, _BlobCheck(blobs), deliveries, received)


def tracebacks(home: Path) -> Iterator[str]:
    """Tracebacks in the logs of API and workers: errors that were not foreseen."""
    for log in home.glob("*.log"):
        yield from (line for line in log.read_text("utf-8", "replace").splitlines() if "Traceback" in line)


def history(home: Path) -> History:
    """The faults, losses and claims of a campaign."""
    return History(
        read(home / "strikes.jsonl", FaultStrike),
        read(home / "losses.jsonl", WorkerLoss),
        read(home / "claims.jsonl", Claim),
    )


def _job_pages(ledger: Ledger) -> ReadPage[Job]:
    def read_page(**arguments: Any) -> tuple[Sequence[Job], str | None]:
        page = TenantLedger.of(ledger, LOCAL).find(**arguments)
        return page.jobs, page.cursor

    return read_page


def _read_all(read_page: ReadPage[T]) -> list[T]:
    """The items of all pages of a list."""
    page, cursor = read_page(limit=200)
    items = [*page]
    while cursor is not None:
        page, cursor = read_page(limit=200, cursor=cursor)
        items += page
    return items


class _BlobCheck:
    """Whether a blob exists and matches its digest; each is read once."""

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
