"""`python -m benchmarks.gpu`: all blocks, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.attacks import measure_peers, measure_plans
from benchmarks.gpu.equality import measure_equality
from benchmarks.gpu.memory import measure_memory
from benchmarks.gpu.passes import describe_device, measure_passes
from benchmarks.gpu.report import Note, Report
from benchmarks.gpu.service import measure_service
from benchmarks.gpu.sizes import BOXES, SMALL, Setup, Sizes
from benchmarks.gpu.smoothing import measure_smoothing
from touchstone.engine.device import choose_device

BLOCKS: dict[str, Callable[[Setup, Note], None]] = {
    "device": describe_device,
    "passes": measure_passes,
    "peers": measure_peers,
    "plans": measure_plans,
    "service": measure_service,
    "smoothing": measure_smoothing,
    "memory": measure_memory,
    "equality": measure_equality,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the blocks, and leave their figures in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--small", action="store_true", help="less of everything, to try it on a CPU")
    parser.add_argument("--only", nargs="*", choices=list(BLOCKS), default=list(BLOCKS))
    chosen = parser.parse_args(arguments)
    setup = Setup(choose_device(chosen.device), SMALL if chosen.small else Sizes())
    report = Report(chosen.output)
    report.found["run"] = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "device": str(setup.device)}
    for name in chosen.only:
        report.run_block(name, BOXES[name], lambda note, block=BLOCKS[name]: block(setup, note))  # type: ignore[misc]
    print(f"\nwritten to {chosen.output}")


if __name__ == "__main__":
    main()
