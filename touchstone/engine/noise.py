"""Random numbers for each row: what a row draws depends on its seed alone, never on other rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.device import to_device
from touchstone.engine.rows import Rows

MIN_THREADED_VALUES = 2**14
"""Values in a sample above which it is drawn on a thread of its own."""


@dataclass(frozen=True)
class Noise(Rows):
    """One counter-based stream (Philox) for each row, keyed by (seed, row, purpose).

    Numbers are drawn on the CPU, so that every device sees the same. A stream moves on with each draw.
    """

    streams: tuple[np.random.Generator, ...]

    @classmethod
    def from_seeds(cls, seeds: Sequence[tuple[int, int]], purpose: str) -> Noise:
        """Streams for rows with the given (seed, row) keys; `purpose` tells attacks apart that share a
        seed.
        """
        salt = zlib.crc32(purpose.encode())
        return cls(
            tuple(
                np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, salt]))) for key in seeds
            )
        )

    def __len__(self) -> int:
        return len(self.streams)

    def __getitem__(self, index: Tensor | slice) -> Noise:
        if isinstance(index, slice):
            return Noise(self.streams[index])
        chosen = index.nonzero().flatten() if index.dtype == torch.bool else index
        return Noise(tuple(self.streams[i] for i in chosen.tolist()))

    @classmethod
    def cat(cls, parts: Sequence[Noise]) -> Noise:
        """All streams in order."""
        return cls(tuple(stream for part in parts for stream in part.streams))

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0,1), in the shape of `like`, whose rows are this record's."""
        return self._draw(like, lambda stream, shape: stream.random(shape, dtype=np.float32))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers."""
        return self._draw(like, lambda stream, shape: stream.standard_normal(shape, dtype=np.float32))

    def exponential(self, like: Tensor) -> Tensor:
        """Exponential numbers of mean one."""
        return self._draw(like, lambda stream, shape: stream.standard_exponential(shape, dtype=np.float32))

    def _draw(
        self,
        like: Tensor,
        draw: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]],
    ) -> Tensor:
        shape = tuple(like.shape[1:])
        drawn = np.stack([np.asarray(draw(stream, shape), dtype=np.float32) for stream in self.streams])
        return to_device(like.device, torch.from_numpy(drawn)).to(like.dtype)


@dataclass(frozen=True)
class SampleNoise:
    """Noise for the samples of a certificate: sample i is the same in every job and in every batch.

    A counter-based generator (Philox 4x64-10) with the key (seed, i) makes sample i. `scale` is σ of the
    Gaussian, b of the Laplace distribution.
    """

    kind: Literal["gaussian", "laplace"]
    scale: float
    seed: int

    name = "philox4x64-10, key (seed, sample index), float32"

    def draw(self, like: Tensor, samples: range) -> Tensor:
        """Noise (n, C, H, W) for `like` (1, C, H, W), one row for each sample index."""
        drawn = np.empty((len(samples), *like.shape[1:]), dtype=np.float32)
        rows = zip(drawn, samples, strict=True)
        if drawn[:1].size < MIN_THREADED_VALUES:
            for row, index in rows:
                self._fill(row, index)
        else:
            list(_thread_pool().map(lambda pair: self._fill(*pair), rows))
        return to_device(like.device, torch.from_numpy(drawn))

    def _fill(self, row: NDArray[np.float32], index: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, index], dtype=np.uint64)))
        if self.kind == "gaussian":
            generator.standard_normal(dtype=np.float32, out=row)
        else:
            row[:] = generator.laplace(size=row.shape)
        row *= self.scale


@cache
def _thread_pool() -> ThreadPoolExecutor:
    """Threads that draw: numpy releases the interpreter lock while it fills an array."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="noise")
