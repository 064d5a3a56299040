"""The service on the device: jobs a second beside one batch, and where the processors' time goes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import touchstone
from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import EPS, Setup
from benchmarks.service import run_clients, temporary_service
from touchstone.images import encode

TICKS = os.sysconf("SC_CLK_TCK")


def measure_service(setup: Setup, note: Note) -> None:
    """PGD on one image a job by many clients, beside one batch of as many images in this process."""
    with patch.dict(os.environ, TOUCHSTONE_DEVICE=str(setup.device)), temporary_service(1) as (host, _, _):
        for name, jobs in setup.sizes.jobs.items():
            with _write_pictures(setup, name) as pictures:
                _run_jobs(setup, host, name, pictures, clients=min(setup.sizes.clients), jobs=len(pictures))
                for clients in setup.sizes.clients:
                    batch = _measure_batch(setup, name, clients)
                    figures = _run_jobs(setup, host, name, pictures, clients=clients, jobs=max(jobs, clients))
                    ratio = round(figures["jobs_per_second"] / batch, 2)
                    note(f"{name} {clients}", {**figures, "batch_per_second": batch, "ratio_to_batch": ratio})


def _measure_batch(setup: Setup, name: str, count: int) -> float:
    model, x = setup.model(name), setup.images(name, count)

    def attack() -> None:
        touchstone.attack(model, x, None, "pgd", eps=EPS[name], steps=setup.sizes.steps, early_stop=False)

    return round(count / setup.clock.interleave({"": attack}, setup.sizes.rounds)[""], 1)


class Pictures(list[Path]):
    """Files of one folder."""

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self[0].parent


@contextmanager
def _write_pictures(setup: Setup, name: str) -> Iterator[Pictures]:
    with tempfile.TemporaryDirectory(prefix="ts") as folder:
        written = Pictures()
        for number, x in enumerate(setup.images(name, 16 if setup.sizes.steps > 10 else 2).cpu()):
            written.append(Path(folder) / f"{number:03}.png")
            written[-1].write_bytes(encode((x * 255).round().byte().permute(1, 2, 0).numpy()))
        yield written


def _run_jobs(
    setup: Setup, host: str, name: str, pictures: Pictures, *, clients: int, jobs: int
) -> dict[str, Any]:
    fields = {"model": name, "steps": str(setup.sizes.steps), "eps": str(EPS[name]), "early_stop": "false"}
    before = read_cpu_seconds(os.getpid())
    with _watch_utilization() as utilization:
        seconds = run_clients(host, pictures.folder, "pgd", fields, clients=clients, jobs=jobs, wait=True)[
            "all"
        ]
    after = read_cpu_seconds(os.getpid())
    spent = {who: round(1000 * (after[who] - before.get(who, 0)) / jobs, 2) for who in sorted(after)}
    return {"jobs_per_second": round(jobs / seconds, 1), "cpu_ms_a_job": spent, "gpu": utilization}


def read_cpu_seconds(root: int) -> dict[str, float]:
    """Processor time so far of all processes below one, by what they run."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    total: dict[str, float] = {}
    for process, seconds in spent.items():
        if _descends(process, root, parents) and (what := _name(process)):
            total[what] = total.get(what, 0.0) + seconds
    return total


def _descends(process: int, root: int, parents: dict[int, int]) -> bool:
    while process in parents and process != root:
        process = parents[process]
        if process == root:
            return True
    return False


def _name(process: int) -> str:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    known = {"workers": "worker", "service": "api"}
    if any(server in command[0] for server in ("valkey", "redis")):
        return "ledger"
    return next((known[part] for part in command if part in known), "others")


@contextmanager
def _watch_utilization() -> Iterator[dict[str, Any]]:
    """Mean utilization of the GPU in percent within this, as nvidia-smi reads it; empty without one."""
    found: dict[str, Any] = {}
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield found
        return
    try:
        yield found
    finally:
        watcher.terminate()
        lines = watcher.communicate()[0].splitlines()
        percents = [float(line) for line in lines if line.strip().replace(".", "").isdigit()]
        if percents:
            found["mean_percent"] = round(sum(percents) / len(percents), 1)
