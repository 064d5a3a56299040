"""What a flood of one tenant does to another: waits beside ten thousand jobs, and in one line with them."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.networks import CNN
from benchmarks.record import save
from benchmarks.service import served
from service.state.dispatch import open_bell
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import TERMINAL, ImageRef, Job, ModelRef, Submission
from touchstone.methods import find
from touchstone.models import zoo
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs

FLOOD = 10_000
IN_FLIGHT = 96
EVERY = 0.2
SECONDS = 15.0
SUBMITTERS = 8


@dataclass(frozen=True)
class Bench:
    """A service at work, and how to give it jobs."""

    ledger: Ledger
    ring: Callable[[str], object]
    submission: Submission

    def submit(self, tenant: str) -> str:
        """One job of a tenant."""
        job, _ = self.ledger.accept(self.submission.model_copy(update={"tenant": tenant}))
        self.ring(job.id)
        return job.id

    def flood(self, tenant: str) -> None:
        """Ten thousand at once."""
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            list(pool.map(self.submit, itertools.repeat(tenant, FLOOD)))

    def visit(self, tenant: str, seconds: float = SECONDS) -> list[str]:
        """One job each fifth of a second."""
        began, jobs = time.monotonic(), []
        for number in range(int(seconds / EVERY)):
            time.sleep(max(0.0, began + number * EVERY - time.monotonic()))
            jobs.append(self.submit(tenant))
        return jobs

    def ended(self, jobs: list[str]) -> list[Job]:
        """These jobs once they have ended."""
        for job in jobs:
            while self.ledger.read(job).status not in TERMINAL:
                time.sleep(0.02)
        return [self.ledger.read(job) for job in jobs]

    @contextmanager
    def busy(self, tenant: str) -> Iterator[None]:
        """A neighbour that always has as many jobs under way as a worker runs at once, and never a queue."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(0.005):
                counts = self.ledger.counts(tenant)
                for _ in range(IN_FLIGHT - counts["queued"] - counts["running"]):
                    self.submit(tenant)

        thread = threading.Thread(target=keep)
        thread.start()
        yield
        stop.set()
        thread.join()


@contextmanager
def bench() -> Iterator[Bench]:
    """A service on the embedded default."""
    with served(1) as (_, home, pictures):
        settings = Settings(home=home)
        image = next(pictures.glob("*.png")).read_bytes()
        digest = open_blobs(settings).put(image)
        card = zoo.manifest(CNN)
        submission = Submission(
            kind="attack",
            method="fgsm",
            model=ModelRef(id=card.id, digest=card.digest),
            image=ImageRef(digest=digest, width=28, height=28, channels=1),
            parameters=find("fgsm").parse({"eps": "0.03"}).model_dump(mode="json"),
        )
        ledger = Ledger(ledger_url(settings), settings)
        yield Bench(ledger, open_bell(ledger_url(settings), ledger.queue_of), submission)
        ledger.close()


def milliseconds(jobs: list[Job]) -> dict[str, Any]:
    """Until jobs were begun, and until they had ended."""
    begun = sorted((job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at)
    done = sorted((job.finished_at - job.created_at).total_seconds() for job in jobs if job.finished_at)
    return {
        f"{name}_{part}_ms": round(1000 * value)
        for name, times in (("begun", begun), ("done", done))
        for part, value in (("p50", statistics.median(times)), ("p99", times[int(0.99 * len(times))]))
    }


def fairness() -> dict[str, Any]:
    """FGSM on a small network, all by one worker."""
    waits: dict[str, dict[str, Any]] = {}
    with bench() as service:
        service.ended(service.visit("visitor", 2.0))  # loads the model
        waits["alone"] = milliseconds(service.ended(service.visit("visitor")))
        with service.busy("neighbour"):
            waits["beside_a_busy_neighbour"] = milliseconds(service.ended(service.visit("visitor")))
        service.flood("flood")
        depth = service.ledger.queue("flood").depth
        waits["beside_a_flood"] = milliseconds(service.ended(service.visit("visitor")))
        left = service.ledger.queue("flood").depth
        waits["in_line_with_the_flood"] = milliseconds(service.ended(service.visit("flood", 3.0)))
    fair, busy = waits["beside_a_flood"], waits["beside_a_busy_neighbour"]
    ratios = {part: round(fair[part] / max(1, busy[part]), 2) for part in busy}
    return {**waits, "waiting_before_and_after": [depth, left], "flood_to_busy_neighbour": ratios}


def main() -> None:
    save("fairness", fairness())


if __name__ == "__main__":
    main()
