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
from benchmarks.service import temporary_service
from service.state.dispatch import open_dispatch
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import TERMINAL, ImageRef, Job, ModelRef, Submission
from touchstone.methods import find
from touchstone.models import zoo
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs

FLOOD = 10_000
IN_FLIGHT = 96
SUBMIT_SECONDS = 0.2
SECONDS = 15.0
SUBMITTERS = 8


@dataclass(frozen=True)
class Service:
    """A service at work, and how to give it jobs."""

    ledger: Ledger
    dispatch: Callable[[str], object]
    submission: Submission

    def submit(self, tenant: str) -> str:
        """One job of a tenant."""
        job, _ = self.ledger.accept(self.submission.model_copy(update={"tenant": tenant}))
        self.dispatch(job.id)
        return job.id

    def flood(self, tenant: str) -> None:
        """Ten thousand at once."""
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            list(pool.map(self.submit, itertools.repeat(tenant, FLOOD)))

    def submit_regularly(self, tenant: str, seconds: float = SECONDS) -> list[str]:
        """One job each fifth of a second."""
        began, jobs = time.monotonic(), []
        for number in range(int(seconds / SUBMIT_SECONDS)):
            time.sleep(max(0.0, began + number * SUBMIT_SECONDS - time.monotonic()))
            jobs.append(self.submit(tenant))
        return jobs

    def wait_for(self, jobs: list[str]) -> list[Job]:
        """These jobs once they have ended."""
        for job in jobs:
            while self.ledger.read(job).status not in TERMINAL:
                time.sleep(0.02)
        return [self.ledger.read(job) for job in jobs]

    @contextmanager
    def keep_busy(self, tenant: str) -> Iterator[None]:
        """A neighbour that always has as many jobs under way as a worker runs at once, and never a queue."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(0.005):
                counts = self.ledger.count_by_status(tenant)
                for _ in range(IN_FLIGHT - counts["queued"] - counts["running"]):
                    self.submit(tenant)

        thread = threading.Thread(target=keep)
        thread.start()
        yield
        stop.set()
        thread.join()


@contextmanager
def open_service() -> Iterator[Service]:
    """A service on the embedded default."""
    with temporary_service(1) as (_, home, pictures):
        settings = Settings(home=home)
        image = next(pictures.glob("*.png")).read_bytes()
        digest = open_blobs(settings).put(image)
        manifest = zoo.find_manifest(CNN)
        submission = Submission(
            kind="attack",
            method="fgsm",
            model=ModelRef(id=manifest.id, digest=manifest.digest),
            image=ImageRef(digest=digest, width=28, height=28, channels=1),
            parameters=find("fgsm").parse({"eps": "0.03"}).model_dump(mode="json"),
        )
        ledger = Ledger(ledger_url(settings), settings)
        yield Service(ledger, open_dispatch(ledger), submission)
        ledger.close()


def waiting_times(jobs: list[Job]) -> dict[str, Any]:
    """Until jobs were begun, and until they had ended."""
    begun = sorted((job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at)
    done = sorted((job.finished_at - job.created_at).total_seconds() for job in jobs if job.finished_at)
    return {
        f"{name}_{part}_ms": round(1000 * value)
        for name, times in (("begun", begun), ("done", done))
        for part, value in (("p50", statistics.median(times)), ("p99", times[int(0.99 * len(times))]))
    }


def measure_fairness() -> dict[str, Any]:
    """FGSM on a small network, all by one worker."""
    waits: dict[str, dict[str, Any]] = {}
    with open_service() as service:
        service.wait_for(service.submit_regularly("visitor", 2.0))  # loads the model
        waits["alone"] = waiting_times(service.wait_for(service.submit_regularly("visitor")))
        with service.keep_busy("neighbour"):
            waits["beside_a_busy_neighbour"] = waiting_times(
                service.wait_for(service.submit_regularly("visitor"))
            )
        service.flood("flood")
        depth = service.ledger.queue("flood").depth
        waits["beside_a_flood"] = waiting_times(service.wait_for(service.submit_regularly("visitor")))
        left = service.ledger.queue("flood").depth
        waits["in_line_with_the_flood"] = waiting_times(
            service.wait_for(service.submit_regularly("flood", 3.0))
        )
    fair, busy = waits["beside_a_flood"], waits["beside_a_busy_neighbour"]
    ratios = {part: round(fair[part] / max(1, busy[part]), 2) for part in busy}
    return {**waits, "waiting_before_and_after": [depth, left], "flood_to_busy_neighbour": ratios}


def main() -> None:
    save("fairness", measure_fairness())


if __name__ == "__main__":
    main()
