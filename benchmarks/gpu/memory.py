"""Two models that take turns, within a budget and without, and passes that do not fit into memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.attacks import run_plans
from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import EPS, Setup
from benchmarks.networks import CNN
from touchstone.engine import Answer, Engine, NoisyLogits, Query, TorchOracle
from touchstone.models.zoo import find_manifest

MODELS = CNN, "fashion-mnist-cnn-linf"


def measure_memory(setup: Setup, note: Note) -> None:
    """Turns of two models, and out-of-memory errors."""
    for what, budget in (("both fit", 2**31), ("one fits", 1)):
        note(f"turns, {what}", _take_turns(setup, budget))
    note("out of memory", _recover(setup))


def _take_turns(setup: Setup, budget: int) -> dict[str, Any]:
    """Milliseconds of each acquisition after the first ones, and the models that stay."""
    engine = Engine(str(setup.device), memory_budget=budget)
    seconds: list[float] = []
    try:
        for turn in range(2 * setup.sizes.turns):
            began = time.perf_counter()
            with engine.models.acquire(find_manifest(MODELS[turn % 2])):
                seconds.append(time.perf_counter() - began)
        resident = [one["id"] for one in engine.metrics()["resident_models"]]
    finally:
        engine.stop()
    return {"ms_a_turn": round(1000 * sum(seconds[2:]) / len(seconds[2:]), 2), "resident": resident}


def _recover(setup: Setup) -> dict[str, Any]:
    """Plans whose passes do not fit at first: they must find what they find otherwise."""
    model, count = setup.model(CNN), max(setup.sizes.plans)
    x, steps = setup.images(CNN, count), min(10, setup.sizes.steps)
    expected = run_plans(model, x, EPS[CNN], steps)
    cramped = _CrampedOracle(**_fields(model.oracle), limit=max(1, count // 4))
    found = run_plans(replace(model, oracle=cramped), x, EPS[CNN], steps)
    differences = [
        float((one.found.x - other.found.x).abs().max()) for one, other in zip(found, expected, strict=True)
    ]
    return {
        "plans": count,
        "largest_pass": cramped.largest[0],
        "refused_passes": cramped.refused[0],
        "largest_difference": max(differences),
    }


def _fields(oracle: TorchOracle) -> dict[str, Any]:
    return {name: getattr(oracle, name) for name in TorchOracle.__dataclass_fields__} | {"rows": 2**20}


class _CrampedOracle(TorchOracle):
    """Runs out of memory above some rows: on a GPU for real, by an allocation that cannot succeed."""

    def __init__(self, *, limit: int, **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "largest", [0])
        object.__setattr__(self, "refused", [0])

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> list[Answer]:
        rows = sum(map(len, queries))
        if rows > self.limit:  # type: ignore[attr-defined]
            self.refused[0] += 1  # type: ignore[attr-defined]
            _exhaust(self.device)
        self.largest[0] = max(self.largest[0], rows)  # type: ignore[attr-defined]
        return super().answer(queries)


def _exhaust(device: torch.device) -> None:
    if device.type == "cuda":
        torch.empty(
            2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device
        )
    raise MemoryError
