"""How many rows of a pass the probe chooses, load after load, alone and beside processes that burn time.

Beside it in the same run the rule that it replaced: double until the rate by the wall clock falls, two tries
for each size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.networks import CNN, LITE0
from benchmarks.record import save
from touchstone.engine.device import max_rows, tune_allocator
from touchstone.engine.oracles import probe
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.models.loader import load_module
from touchstone.models.zoo import find_manifest

LOADS = 10
BURN = "while True: pass"
MAX_SECONDS = 1.5
STOP_SHARE = 0.85


def main() -> None:
    """Load both networks ten times, idle and beside processes that keep every processor busy."""
    tune_allocator()
    figures: dict[str, Any] = {}
    for name, count in (("without burners", 0), ("with burners", os.cpu_count() or 1)):
        with burners(count):
            figures[name] = choose_all() | {"load average": round(os.getloadavg()[0], 1)}
            print(name, figures[name], flush=True)
    save("probe", figures)


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Processes that compute for the length of the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def choose_all() -> dict[str, Any]:
    """Rows that each rule chose, and how often."""
    rules = {"processor time": choose_by_probe, "wall clock": choose_by_wall_clock}
    return {
        name: {rule: count_choices(name, choose) for rule, choose in rules.items()} for name in (CNN, LITE0)
    }


def count_choices(name: str, choose: Callable[[TorchOracle, probe.Shape], int]) -> dict[str, int]:
    """How often each number of rows was chosen."""
    choices = Counter(choose(*load(name)) for _ in range(LOADS))
    return {str(rows): choices[rows] for rows in sorted(choices)}


def load(name: str) -> tuple[TorchOracle, probe.Shape]:
    """The network as a worker loads it, and the shape of its images."""
    manifest, device = find_manifest(name), torch.device("cpu")
    spec = manifest.input
    oracle = TorchOracle(load_module(manifest), Preprocessing.from_manifest(manifest, device), device)
    return oracle, (spec.channels, spec.height, spec.width)


def choose_by_probe(oracle: TorchOracle, shape: probe.Shape) -> int:
    return max(probe.measure_gradient_rates(oracle, shape))


def choose_by_wall_clock(oracle: TorchOracle, shape: probe.Shape) -> int:
    """The rule that it replaced."""
    measure = partial(measure_rate, oracle, shape)
    measure(1)
    until = time.perf_counter() + MAX_SECONDS
    rates: dict[int, float] = {1: measure(1)}
    while max(rates) < max_rows(oracle.device) and time.perf_counter() < until:
        rows = 2 * max(rates)
        rates[rows] = measure(rows)
        if rates[rows] < STOP_SHARE * max(rates.values()):
            break
    return max(probe.MIN_ROWS, best_of(rates))


def measure_rate(oracle: TorchOracle, shape: probe.Shape, rows: int) -> float:
    return rows / min(probe.time_gradient(oracle, shape, rows) for _ in range(2))


def best_of(rates: Mapping[int, float]) -> int:
    return max(rates, key=rates.__getitem__)


if __name__ == "__main__":
    main()
