"""`python -m chaos.promises`: recovery times of the service, and the limits that it promises.

Run it on a machine with no other load.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import save
from chaos import campaign, document, lag, traps
from chaos.client import build_body, send_request
from chaos.faults import NOTICED_SECONDS
from chaos.journal import Claim, LastQuery, read
from chaos.proxy import Mode
from chaos.report import spread
from chaos.site import Site, wait_until
from chaos.traps import Trap
from touchstone.ledger.records import TERMINAL

CONCURRENCY = 16
MANY_STEPS = 10_000
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Measurement:
    """Measured times in seconds, and the promised limit of their 99th percentile, if there is one."""

    promise: str
    limit: float | None
    seconds: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.limit is None or spread(self.seconds)[1] < self.limit

    def record(self) -> dict[str, Any]:
        """The row as it is recorded."""
        times = dict(zip(("p50", "p99", "max"), spread(self.seconds), strict=True))
        return {"promise": self.promise, "limit": self.limit, "n": len(self.seconds), **times}


_numbers = itertools.count(1_000_000)


def submit(site: Site, steps: int) -> str:
    """Submit a job; returns its id."""
    status, answer = send_request(
        site.port, "POST", "/v1/attacks/pgd", build_body(next(_numbers), steps), JSON
    )
    if status != "202":
        raise RuntimeError(f"a job was refused with {status}: {answer}")
    return str(answer["id"])


def measure_cancel(site: Site, times: int) -> Measurement:
    """From the request to cancel a job to its last query, while others run."""
    running = [submit(site, MANY_STEPS) for _ in range(CONCURRENCY)]
    at: dict[str, float] = {}
    for _ in range(times):
        job = running.pop(0)
        wait_until(lambda job=job: site.ledger.read(job).progress.done > 0)  # type: ignore[misc]
        at[job] = time.time()
        send_request(site.port, "POST", f"/v1/jobs/{job}/cancel")
        running.append(submit(site, MANY_STEPS))
    site.ledger.cancel_all(running)
    wait_until(lambda: all(site.ledger.read(job).status in TERMINAL for job in [*at, *running]))
    last = {query.job: query.at for query in read(site.home / "queries.jsonl", LastQuery)}
    return Measurement("cancel to last model query", 1.0, tuple(max(0.0, last[job] - at[job]) for job in at))


def measure_cut_off(site: Site, mode: Mode, rounds: int = 3) -> list[Measurement]:
    """How long requests take while the ledger is unreachable, and how late the event loop is."""
    job = submit(site, 1)
    send = partial(_time_request, site, job)
    begun = time.time()
    with site.api_proxy.failing(mode), ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(send, range(rounds * CONCURRENCY)))
    if {status for status, _ in answers} != {"503"}:
        raise RuntimeError(f"not every response was 503: {answers}")
    time.sleep(2 * lag.NOTE_SECONDS)
    notes = lag.read(site.home, since=begun)
    site.wait_until_reachable()
    return [
        Measurement(
            f"503 while the ledger is cut off ({mode.value})", 2.0, tuple(took for _, took in answers)
        ),
        Measurement(f"event loop meanwhile ({mode.value})", 0.05, tuple(note["loop"] for note in notes)),
        Measurement(f"a thread beside it ({mode.value})", None, tuple(note["thread"] for note in notes)),
    ]


def _time_request(site: Site, job: str, number: int) -> tuple[str, float]:
    begun = time.monotonic()
    if number % 3:
        status, _ = send_request(site.port, "GET", (f"/v1/jobs/{job}", "/v1/jobs")[number % 2])
    else:
        status, _ = send_request(site.port, "POST", "/v1/attacks/pgd", build_body(next(_numbers), 1), JSON)
    return status, time.monotonic() - begun


def measure_reclaim(site: Site, times: int) -> Measurement:
    """From the kill of a worker to the next claim of its job."""
    return Measurement("killed worker to next claim", 10.0, tuple(_time_reclaim(site) for _ in range(times)))


def _time_reclaim(site: Site) -> float:
    wait_until(site.all_alive)
    job = submit(site, MANY_STEPS)
    wait_until(lambda: _read_claims(site, job))
    pid = _read_claims(site, job)[-1].pid
    [worker] = [process for process in site.workers if process.pid == pid]
    at = time.time()
    worker.kill()
    wait_until(lambda: len(_read_claims(site, job)) > 1)
    site.ledger.cancel(job)
    return _read_claims(site, job)[1].at - at


def _read_claims(site: Site, job: str) -> list[Claim]:
    return [claim for claim in read(site.home / "claims.jsonl", Claim) if claim.job == job]


def measure_restart(site: Site, times: int) -> Measurement:
    """From the return of a killed ledger and broker to the next claim."""
    return Measurement(
        "ledger restarted to next claim", 5.0, tuple(_time_restart(site) for _ in range(times))
    )


def _time_restart(site: Site) -> float:
    site.kill_valkey(signal.SIGKILL)
    at = time.time()
    site.wait_until_reachable()
    job = submit(site, 1)
    wait_until(lambda: _read_claims(site, job))
    return _read_claims(site, job)[0].at - at


STUCK = {traps.HANG: "hung engine", traps.SEIZE: "held interpreter"}


def measure_hang(site: Site, trap: Trap) -> Measurement:
    """From a step that hangs to the end of the worker."""
    wait_until(site.all_alive)
    before = {process.pid for process in site.workers}
    traps.arm(trap, site.home)
    job = submit(site, 1)
    wait_until(lambda: not traps.is_armed(trap, site.home))
    took = wait_until(lambda: before - {process.pid for process in site.workers})
    wait_until(lambda: site.ledger.read(job).status == "succeeded")
    limit = site.settings.hang + NOTICED_SECONDS
    return Measurement(
        f"{STUCK[trap]} to worker's end (hang budget {site.settings.hang:g} s)", limit, (took,)
    )


def count_jobs_of_one_key(site: Site, times: int = 50) -> int:
    """How many jobs result from so many concurrent equal requests with one Idempotency-Key."""
    number = next(_numbers)
    headers = {**JSON, "Idempotency-Key": f"key-{number}"}
    send = partial(send_request, site.port, "POST", "/v1/attacks/pgd", build_body(number, 1), headers)
    with ThreadPoolExecutor(times) as pool:
        answers = list(pool.map(lambda _: send(), range(times)))
    if {status for status, _ in answers} != {"202"}:
        raise RuntimeError(f"refused: {answers}")
    return len({answer["id"] for _, answer in answers})


def measure(site: Site) -> Iterator[Measurement]:
    """Measure everything that has a limit."""
    yield measure_cancel(site, 100)
    for mode in (Mode.STALL, Mode.ONE_WAY, Mode.RESET):
        yield from measure_cut_off(site, mode)
    yield measure_restart(site, 20)
    yield measure_reclaim(site, 10)
    yield from (measure_hang(site, trap) for trap in STUCK)


def main() -> int:
    """The exit code is 1 if a limit was exceeded."""
    parser = argparse.ArgumentParser(prog="python -m chaos.promises", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the results to benchmarks/results")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    with campaign.site(home, workers=2, lease=5.0, hang=5.0, concurrency=96) as site:
        jobs = count_jobs_of_one_key(site)
        print(f"50 requests with one Idempotency-Key: {jobs} job")
        measurements = list(measure(site))
    rows = [one.record() for one in measurements]
    print(document.promises_table(rows))
    if arguments.record:
        save(document.PROMISES, {"jobs_of_50_equal_requests": jobs, "rows": rows})
    return 0 if jobs == 1 and all(one.holds for one in measurements) else 1


if __name__ == "__main__":
    sys.exit(main())
