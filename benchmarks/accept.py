"""What accepting a job costs: 64 clients post, each answer means that the job is on the disk. The CPU time of
each process, beside a naive peer's, in rounds that take turns.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peer_services.naive import temporary_peer
from benchmarks.record import save
from benchmarks.service import PGD, find_processes, run_clients, temporary_service
from touchstone.ledger.address import socket_url
from touchstone.ledger.server import process_id

CLIENTS, JOBS, ROUNDS = 64, 600, 5
_TICKS = os.sysconf("SC_CLK_TCK")

Processes = Mapping[str, list[int]]
"""The processes of a service by what they do."""


@dataclass
class Service:
    """A service under measurement, and what its rounds gave."""

    host: str
    processes: Callable[[], Processes]
    rates: list[float] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    """CPU milliseconds of an accept by kind of process, one entry for each round."""
    each: list[float] = field(default_factory=list)

    def run_round(self, pictures: Path) -> None:
        """Post the jobs of one round."""
        before = self._cpu_ms()
        run = run_clients(self.host, pictures, "pgd", PGD, clients=CLIENTS, jobs=JOBS, wait=False)
        time.sleep(0.5)  # until what follows an answer is done as well
        after = self._cpu_ms()
        self.rates.append(JOBS / run["all"])
        self.costs.append({name: (after[name] - before[name]) / JOBS for name in after})
        self.each += run["each"]

    def _cpu_ms(self) -> dict[str, float]:
        return {name: sum(map(read_cpu_ms, pids)) for name, pids in self.processes().items()}

    def summarize(self) -> dict[str, Any]:
        """Medians over the rounds."""
        each = sorted(self.each)
        cost = {name: round(statistics.median(c[name] for c in self.costs), 2) for name in self.costs[0]}
        return {
            "accepted_per_second": round(statistics.median(self.rates)),
            "p50_ms": round(1000 * statistics.median(each), 1),
            "p99_ms": round(1000 * each[int(0.99 * len(each))], 1),
            "cpu_ms": {**cost, "sum": round(statistics.median(self.sums()), 2)},
        }

    def sums(self) -> list[float]:
        """CPU milliseconds of an accept in all processes, of each round."""
        return [sum(cost.values()) for cost in self.costs]


def read_cpu_ms(pid: int) -> float:
    """The CPU time that a process has taken, in user and in system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / _TICKS


def list_children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@contextmanager
def sleeping_service(**changes: Any) -> Iterator[tuple[Service, Path]]:
    """A service whose worker sleeps, and a folder of images."""
    with temporary_service(64, **changes) as (host, home, pictures):
        valkey = process_id(socket_url(home))
        assert valkey is not None
        [worker] = find_processes("workers", home)

        def processes() -> Processes:
            apis = find_processes("service", home)
            return {
                "api": apis,
                "decoders": [c for api in apis for c in list_children(api)],
                "valkey": [valkey],
            }

        run_clients(host, pictures, "pgd", PGD, clients=CLIENTS, jobs=300, wait=False)
        os.kill(worker, signal.SIGSTOP)
        try:
            yield Service(host, processes), pictures
        finally:
            os.kill(worker, signal.SIGCONT)


def measure_accept() -> dict[str, Any]:
    """CPU time, rate and latency with one API process, with two, and of the peer, and how they compare."""
    with ExitStack() as stack:
        ours, pictures = stack.enter_context(sleeping_service())
        two, _ = stack.enter_context(sleeping_service(apis=2))
        host, api, valkey = stack.enter_context(temporary_peer(pictures.parent, _find_free_port()))
        naive = Service(host, lambda: {"api": [api], "valkey": [valkey]})
        run_clients(host, pictures, "pgd", PGD, clients=CLIENTS, jobs=300, wait=False)
        services = {"touchstone": ours, "touchstone_two_apis": two, "naive": naive}
        for _ in range(ROUNDS):
            for service in services.values():
                service.run_round(pictures)
        single = run_clients(ours.host, pictures, "pgd", PGD, clients=1, jobs=300, wait=False)["each"]
    ratios = [mine / theirs for mine, theirs in zip(ours.sums(), naive.sums(), strict=True)]
    return {
        "clients": CLIENTS,
        "jobs_a_round": JOBS,
        "appendfsync": {"touchstone": "always", "naive": "nothing is kept on the disk"},
        "cores": os.cpu_count(),
        **{name: service.summarize() for name, service in services.items()},
        "cpu_ratio_of_rounds": [round(ratio, 2) for ratio in ratios],
        "cpu_ratio_to_naive": round(statistics.median(ratios), 2),
        "rate_of_two_apis_to_one": round(
            statistics.median(many / one for many, one in zip(two.rates, ours.rates, strict=True)), 2
        ),
        "one_client_p50_ms": round(1000 * statistics.median(single), 1),
        "one_client_p99_ms": round(1000 * single[int(0.99 * len(single))], 1),
    }


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    save("service-accept", measure_accept())


if __name__ == "__main__":
    main()
