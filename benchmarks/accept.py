"""How fast jobs are accepted: 64 clients post, each answer means that the job is on the disk."""

from __future__ import annotations

import os
import signal
import statistics
from typing import Any

from benchmarks.record import save
from benchmarks.service import PGD, find_process, run_clients, temporary_service

CLIENTS, JOBS = 64, 4000


def measure_accept() -> dict[str, Any]:
    """Jobs a second and the seconds of each while the worker sleeps; the median of three rounds."""
    with temporary_service(64) as (host, home, pictures):
        worker = find_process("workers", home)
        run_clients(host, pictures, "pgd", PGD, clients=CLIENTS, jobs=500, wait=False)
        os.kill(worker, signal.SIGSTOP)
        rounds = [
            run_clients(host, pictures, "pgd", PGD, clients=CLIENTS, jobs=JOBS, wait=False) for _ in range(3)
        ]
        single = run_clients(host, pictures, "pgd", PGD, clients=1, jobs=300, wait=False)["each"]
        os.kill(worker, signal.SIGCONT)
    each = sorted(seconds for one in rounds for seconds in one["each"])
    return {
        "clients": CLIENTS,
        "jobs": JOBS,
        "appendfsync": "always",
        "accepted_per_second": round(JOBS / statistics.median(one["all"] for one in rounds)),
        "p50_ms": round(1000 * statistics.median(each), 1),
        "p99_ms": round(1000 * each[int(0.99 * len(each))], 1),
        "one_client_p50_ms": round(1000 * statistics.median(single), 1),
        "one_client_p99_ms": round(1000 * single[int(0.99 * len(single))], 1),
    }


def main() -> None:
    save("service-accept", measure_accept())


if __name__ == "__main__":
    main()
