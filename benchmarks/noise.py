"""Noise of certificates: samples a second with numpy's normal numbers, a generator for each sample, and with
ours; the numbers alone, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import touchstone
from benchmarks.networks import CNN, LITE0, clothes, photos
from benchmarks.record import save, time_interleaved
from touchstone.engine import Noise, SampleNoise

SIGMA = 0.25
POOL = ThreadPoolExecutor(os.cpu_count())


def draw_with_numpy(noise: SampleNoise, like: Tensor, samples: range) -> Tensor:
    """Each sample by numpy's ziggurat from a generator of its own, large ones on several threads."""
    drawn = np.empty((len(samples), *like.shape[1:]), dtype=np.float32)

    def fill(index: int) -> None:
        key = np.array([noise.seed, samples[index]], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=drawn[index])
        drawn[index] *= noise.scale

    run = POOL.map if drawn[:1].size >= 2**14 else map
    list(run(fill, range(len(samples))))
    return torch.from_numpy(drawn)


@contextmanager
def numpy_noise() -> Iterator[None]:
    """Within this, certificates draw with numpy."""
    with patch.object(SampleNoise, "draw", draw_with_numpy):
        yield


def measure(name: str, x: Tensor, n: int, rows: int) -> dict[str, Any]:
    """One certificate of n samples, and the noise of one pass of `rows`."""
    model, noise = touchstone.load(name), SampleNoise("gaussian", SIGMA, 0)

    def certify() -> None:
        touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=n, rule="fixed")

    def certify_with_numpy() -> None:
        with numpy_noise():
            certify()

    certified = time_interleaved({"numpy": certify_with_numpy, "ours": certify}, rounds=5)
    drawn = time_interleaved(
        {
            "numpy": lambda: draw_with_numpy(noise, x, range(rows)),
            "ours": lambda: noise.draw(x, range(rows)),
            "torch.randn": lambda: torch.randn(rows, *x.shape[1:]),
        },
        rounds=9,
        repeat=max(1, 2**22 // (rows * x[0].numel())),
    )
    return {
        "samples_per_second": {who: round((n + 100) / seconds) for who, seconds in certified.items()},
        "ratio_to_numpy": round(certified["numpy"] / certified["ours"], 2),
        "noise_us_a_sample": {who: round(1e6 * seconds / rows, 1) for who, seconds in drawn.items()},
    }


def measure_small_draws(rows: int = 1, size: int = 784) -> dict[str, Any]:
    """What an attack on one small image draws at a time: microseconds a draw."""
    like = torch.zeros(rows, size)
    noise = Noise.from_seeds([(0, row) for row in range(rows)], "pgd")
    streams = [np.random.Generator(np.random.Philox(np.random.SeedSequence([0, row]))) for row in range(rows)]

    def numpy() -> Tensor:
        return torch.from_numpy(np.stack([stream.random(size, dtype=np.float32) for stream in streams]))

    runs: dict[str, Callable[[], Any]] = {"numpy": numpy, "ours": lambda: noise.uniform(like)}
    seconds = time_interleaved(runs, rounds=9, repeat=200)
    return {"rows": rows, "us_a_draw": {who: round(1e6 * each, 1) for who, each in seconds.items()}}


def main() -> None:
    save("noise-cnn", measure(CNN, clothes(1), 4_000, 64))
    save("noise-lite0", measure(LITE0, photos(1), 400, 16))
    save("noise-small", {"one": measure_small_draws(), "64": measure_small_draws(64)})


if __name__ == "__main__":
    main()
