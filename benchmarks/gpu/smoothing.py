"""Samples of a certificate a second, beside a bare loop that draws on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import touchstone
from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import Setup
from benchmarks.networks import NormalizedNetwork
from touchstone.engine import SampleNoise

SIGMA = 0.25
BATCHES = 64, 256


def measure_smoothing(setup: Setup, note: Note) -> None:
    """A certificate of n samples; noise alone, for a chunk of the engine's."""
    for name, n in setup.sizes.samples.items():
        net, model, x = NormalizedNetwork(name).to(setup.device), setup.model(name), setup.images(name, 1)
        runs: dict[str, Callable[[], Any]] = {
            "touchstone": lambda model=model, x=x, n=n: touchstone.certify(
                model, x, "smoothing", sigma=SIGMA, n=n, rule="fixed"
            )
        }
        for batch in BATCHES:
            runs[f"bare loop, batch {batch}"] = lambda net=net, x=x, n=n, batch=batch: run_bare_loop(
                net, x, n + 100, batch
            )
        seconds = setup.clock.interleave(runs, setup.sizes.rounds)
        bare = min(seconds[f"bare loop, batch {batch}"] for batch in BATCHES)
        note(
            name,
            {
                "samples_per_second": {who: round((n + 100) / time) for who, time in seconds.items()},
                "ratio_to_bare_loop": round(bare / seconds["touchstone"], 2),
                "noise_ms_for_256": _measure_noise(setup, x),
            },
        )


def _measure_noise(setup: Setup, x: Tensor) -> dict[str, float]:
    noise = SampleNoise("gaussian", SIGMA, 0)
    seconds = setup.clock.interleave(
        {
            "touchstone": lambda: noise.draw(x, range(256)),
            "torch.randn": lambda: torch.randn(256, *x.shape[1:], device=x.device),
        },
        setup.sizes.rounds,
    )
    return {who: round(1000 * time, 3) for who, time in seconds.items()}


def run_bare_loop(net: nn.Module, x: Tensor, n: int, batch: int) -> list[int]:
    """Noisy passes written by hand; the votes."""
    votes = torch.zeros(len(net(x)[0]), dtype=torch.long, device=x.device)
    with torch.no_grad():
        for start in range(0, n, batch):
            rows = min(batch, n - start)
            labels = net(x + SIGMA * torch.randn(rows, *x.shape[1:], device=x.device)).argmax(1)
            votes += torch.bincount(labels, minlength=len(votes))
    found: list[int] = votes.tolist()
    return found
