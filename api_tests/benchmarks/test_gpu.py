"""The benchmark of a GPU, on a CPU and with less of everything: every block runs and tells what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import BLOCKS, main
from benchmarks.gpu.attacks import SynchronisationCounter
from benchmarks.gpu.clock import Clock, OutOfTime, time_box
from benchmarks.gpu.report import Note, Report
from benchmarks.gpu.service import read_cpu_seconds
from benchmarks.gpu.sizes import BOXES


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("gpu") / "build/gpu.json"
    main(["--device", "cpu", "--small", "--output", str(path)])
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_ends_with_figures(found: dict[str, Any], block: str) -> None:
    figures = found[block]
    assert "failed" not in figures
    assert "cut" not in figures
    assert len(figures) > 1


def test_attacks_are_compared_with_both_peers(found: dict[str, Any]) -> None:
    compared = found["peers"]["fashion-mnist-cnn 2"]
    assert set(compared["image_steps_per_second"]) == {"torchattacks", "foolbox", "touchstone"}
    assert found["plans"]["2 images"]["ratio_to_batch"] > 0
    assert found["plans"]["2 images, synchronisations a step"]["fused"]["dispatched"] >= 0


def test_service_says_where_the_time_goes(found: dict[str, Any]) -> None:
    figures = found["service"]["fashion-mnist-cnn 2"]
    assert {"api", "ledger", "worker"} <= set(figures["cpu_ms_a_job"])
    assert figures["cpu_ms_a_job"]["worker"] > 0


def test_a_device_equals_itself(found: dict[str, Any]) -> None:
    figures = found["equality"]
    assert figures["noise"]["many, uniform equal"] is True
    assert figures["noise"]["many, normal differs by"] == 0
    assert figures["fashion-mnist-cnn"]["equal_images"] == figures["fashion-mnist-cnn"]["images"] == 2
    assert figures["fashion-mnist-cnn without tf32"]["equal_pixels"] == 1
    assert figures["deterministic"] == {"jobs": 2, "equal": 2}


def test_exhausted_memory_changes_no_result(found: dict[str, Any]) -> None:
    figures = found["memory"]
    assert figures["out of memory"]["refused_passes"] > 0
    assert figures["out of memory"]["largest_pass"] == 1
    assert figures["out of memory"]["largest_difference"] < 1e-4
    assert len(figures["turns, both fit"]["resident"]) == 2
    assert len(figures["turns, one fits"]["resident"]) < 2


def test_boxes_add_up_to_less_than_eight_minutes() -> None:
    assert list(BOXES) == list(BLOCKS)
    assert sum(BOXES.values()) < 8 * 60


def test_block_past_its_time_is_cut_and_its_figures_are_kept(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json")
    seen = []

    def block(note: Note) -> None:
        note("first", 1)
        seen.append(json.loads(report.path.read_text()))
        time.sleep(60)

    report.run_block("slow", 0.1, block)
    report.run_block("broken", 5, lambda _note: 1 / 0)  # type: ignore[arg-type, return-value]
    assert seen == [{"slow": {"first": 1}}]
    kept = json.loads(report.path.read_text())
    assert (kept["slow"]["first"], kept["slow"]["cut"]) == (1, "after 0.1 s")
    assert kept["broken"]["failed"] == "ZeroDivisionError: division by zero"


def test_time_box_ends_with_its_body() -> None:
    with time_box(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(OutOfTime), time_box(0.05):
        time.sleep(60)


def test_clock_takes_the_median_of_turns() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    assert set(Clock(torch.device("cpu")).interleave(runs, rounds=2)) == {"a", "b"}
    assert order == ["a", "b"] * 3


def test_counter_counts_what_the_host_must_wait_for() -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with SynchronisationCounter() as counter:
        x + 1
        x[torch.tensor([1, 2])]
        x.clone().copy_(x)
    assert counter.count == 0
    with SynchronisationCounter() as counter:
        bool(mask.any())
        x.sum().item()
        x[mask]
        mask.nonzero()
    assert counter.count == 4


def test_processor_time_is_that_of_descendants() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", busy, "workers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        spent = read_cpu_seconds(os.getpid())
        assert spent["worker"] >= 0.25
        assert "worker" not in read_cpu_seconds(child.pid)
        child.communicate("\n")
