"""The service beside one job per Celery task and beside the library: throughput, latency, ten thousand
queued jobs.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import touchstone
from benchmarks.networks import CNN, clothes
from benchmarks.record import save, time_interleaved
from touchstone.images import encode
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

PGD = {"model": CNN, "steps": "40", "eps": "0.03", "early_stop": "false"}
FGSM = {"model": CNN, "eps": "0.03"}


@contextmanager
def temporary_service(images: int, *, apis: int = 1, **options: Any) -> Iterator[tuple[str, Path, Path]]:
    """A service on the embedded default in a folder of its own: its host, its home and a folder of images."""
    with tempfile.TemporaryDirectory(prefix="ts") as folder:
        pictures = Path(folder) / "images"
        pictures.mkdir()
        for i, x in enumerate(clothes(images)):
            pixels = (x * 255).round().byte().permute(1, 2, 0).numpy()
            (pictures / f"{i:03}.png").write_bytes(encode(pixels))
        home = Path(folder) / "home"
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for the worker of the solo pool
        with run_service(
            Settings(home=home, port=0, api_processes=apis), lambda _line: None, **options
        ) as url:
            yield url.removeprefix("http://"), home, pictures


def run_clients(
    host: str, pictures: Path, method: str, fields: dict[str, str], **plan: Any
) -> dict[str, Any]:
    """Let clients post; the seconds of all and of each."""
    plan = {"host": host, "path": f"/v1/attacks/{method}", "images": str(pictures), "fields": fields, **plan}
    command = [sys.executable, "-m", "benchmarks.clients"]
    done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure_throughput() -> dict[str, Any]:
    """64 clients, each one image at a time, PGD with 40 fixed steps."""
    model, x = touchstone.load(CNN), clothes(64)
    batch = time_interleaved(
        {"batch": lambda: touchstone.attack(model, x, None, "pgd", eps=0.03, steps=40, early_stop=False)},
        rounds=3,
    )["batch"]
    rates = {}
    for name, options, jobs in (
        ("service", {}, 256),
        ("solo pool", {"worker_module": "benchmarks.peer_services.solo"}, 64),
    ):
        with temporary_service(64, **options) as (host, _, pictures):
            run_clients(host, pictures, "pgd", PGD, clients=16, jobs=16, wait=True)
            times = [
                run_clients(host, pictures, "pgd", PGD, clients=64, jobs=jobs, wait=True)["all"]
                for _ in range(3)
            ]
            rates[name] = jobs / statistics.median(times)
    return {
        "jobs_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "in_process_batch_of_64_per_second": round(64 / batch, 1),
        "ratio_to_solo_pool": round(rates["service"] / rates["solo pool"], 2),
        "ratio_to_in_process": round(rates["service"] * batch / 64, 2),
    }


def measure_latency() -> dict[str, Any]:
    """FGSM, one client: what the service adds to the attack itself."""
    model, x = touchstone.load(CNN), clothes(1)
    inside = time_interleaved(
        {"fgsm": lambda: touchstone.attack(model, x, None, "fgsm", eps=0.03)}, rounds=50
    )["fgsm"]
    with temporary_service(64) as (host, _, pictures):
        run_clients(host, pictures, "fgsm", FGSM, clients=1, jobs=20, wait=True)
        each = run_clients(host, pictures, "fgsm", FGSM, clients=1, jobs=200, wait=True)["each"]
    return {
        "in_process_ms": round(1000 * inside, 1),
        "service_p50_ms": round(1000 * statistics.median(each), 1),
        "service_p99_ms": round(1000 * each[int(0.99 * len(each))], 1),
        "added_p50_ms": round(1000 * (statistics.median(each) - inside), 1),
    }


def measure_backlog(jobs: int = 10_000) -> dict[str, Any]:
    """Ten thousand jobs accepted while the worker sleeps, then 20 s of work."""
    with temporary_service(64) as (host, home, pictures):
        api, worker = find_process("service", home), find_process("workers", home)
        before = _megabytes(api)
        os.kill(worker, signal.SIGSTOP)
        taken = run_clients(host, pictures, "pgd", PGD, clients=64, jobs=jobs, wait=False)
        after = _megabytes(api)
        os.kill(worker, signal.SIGCONT)
        time.sleep(20)
        listing = _time_get(f"http://{host}/v1/jobs?status=queued&limit=50")
        return {
            "accepted_per_second": round(jobs / taken["all"]),
            "accept_p50_ms": round(1000 * statistics.median(taken["each"]), 1),
            "api_megabytes": {"before": before, "after": after},
            "worker_megabytes": _megabytes(worker),
            "list_50_ms": round(1000 * listing, 1),
        }


def find_process(module: str, home: Path) -> int:
    """The process that runs a module for this home."""
    found = find_processes(module, home)
    if not found:
        raise RuntimeError(f"no process runs {module} for {home}")
    return found[0]


def find_processes(module: str, home: Path) -> list[int]:
    """All processes that run a module for this home."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if module.encode() in command and f"TOUCHSTONE_HOME={home}\0".encode() in environment + b"\0":
            found.append(int(entry.name))
    return found


def _megabytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


def _time_get(url: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=10) as answer:
        answer.read()
    return time.perf_counter() - began


def main() -> None:
    save("service-throughput", measure_throughput())
    save("service-latency", measure_latency())
    save("service-backlog", measure_backlog())


if __name__ == "__main__":
    main()
