"""What a benchmark leaves: a table on the screen and a record with date and machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Enough to read a figure with: processor, cores, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, repeat: int = 1
) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, so that what disturbs the machine disturbs them all.

    Each is run once before, to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(repeat):
                run()
            if round_:
                seconds[name].append((time.perf_counter() - began) / repeat)
    return {name: statistics.median(times) for name, times in seconds.items()}


def read_record(name: str) -> dict[str, Any]:
    """The record of one benchmark as it was left; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, figures: dict[str, Any]) -> None:
    """Write the record of one benchmark and print it."""
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": describe_machine(), **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{name}")
    for key, value in figures.items():
        print(f"  {key}: {json.dumps(value)}")
