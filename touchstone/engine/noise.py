"""Random numbers for each row: what a row draws depends on its seed alone, never on other rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine import counter_random
from touchstone.engine.counter_random import VALUES, Convert, Key, Numbers, Stream, Words, computes_itself
from touchstone.engine.device import to_device
from touchstone.engine.noise_streams import SAMPLE_STREAM
from touchstone.engine.rows import RowIndex, Rows

MIN_THREADED_VALUES = 2**14
"""Values in a sample above which samples are drawn on several threads."""

PIECE_VALUES = 2**17
"""Values to make at a time on the host, so that a core's cache holds what they are made from."""

DEVICE_PIECE_VALUES = 2**24
"""Values to make at a time on a GPU, which bounds the memory for it to some gigabytes."""

MAX_DRAWN_AT_ONCE = 2**24
"""Values of a draw above which it is made in pieces: making them takes several times their memory."""

_SAMPLES = zlib.crc32(b"samples of a certificate")


@dataclass(frozen=True)
class Noise(Rows):
    """One counter-based stream for each row, keyed by (seed, row, purpose).

    Every device draws the same numbers. A stream moves on with each draw, also where a selection of the rows
    draws from it. Selecting rows waits for no device; only drawing does, to learn which rows are selected.
    """

    streams: tuple[Stream, ...]
    chosen: Tensor | None = field(default=None, repr=False)  # indices of this record's rows; None for all

    @classmethod
    def from_seeds(cls, seeds: Sequence[tuple[int, int]], purpose: str) -> Noise:
        """Streams for rows with the given (seed, row) keys; `purpose` tells attacks apart that share a
        seed.
        """
        salt = zlib.crc32(purpose.encode())
        return cls(tuple(Stream((seed, row << 32 | salt)) for seed, row in seeds))

    def __len__(self) -> int:
        return len(self.streams) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: Tensor | slice | RowIndex) -> Noise:
        if isinstance(index, RowIndex):
            streams = self._selected()
            return Noise(tuple(streams[row] for row in index.positions))
        if isinstance(index, slice) and self.chosen is None:
            return Noise(self.streams[index])
        rows = torch.arange(len(self.streams)) if self.chosen is None else self.chosen
        return Noise(self.streams, (rows.to(index.device) if isinstance(index, Tensor) else rows)[index])

    @property
    def kind(self) -> Hashable:
        """All can be joined."""
        return Noise

    @classmethod
    def cat(cls, parts: Sequence[Noise]) -> Noise:
        """All streams in order."""
        return cls(tuple(stream for part in parts for stream in part._selected()))

    def replace_rows(self, index: RowIndex, part: Noise) -> Noise:
        """These streams with those of `part` at the positions of `index`."""
        streams = list(self._selected())
        for position, stream in zip(index.positions, part._selected(), strict=True):
            streams[position] = stream
        return Noise(tuple(streams))

    def normal_parts(self, like: Tensor, count: int) -> Callable[[slice], Tensor]:
        """What `normal` draws in the shape (B, count, ...) for `like` (B, ...), a part of it at a time: a
        function from a slice of the second dimension. The streams move on now, as if all were drawn.
        """
        if count * like.numel() <= MAX_DRAWN_AT_ONCE:
            whole = self.normal(like[:, None].expand(-1, count, *like.shape[1:]))
            return lambda part: whole[:, part]
        size = like[0].numel()
        blocks = _blocks_of(count * size)
        sources = [_Source(stream.key, stream.take(blocks), blocks) for stream in self._selected()]

        def draw(part: slice) -> Tensor:
            shape = (len(sources), (part.stop - part.start) * size)
            drawn = _fill_normal_part(sources, part.start * size, shape, like.device)
            return drawn.reshape(len(sources), -1, *like.shape[1:]).to(like.dtype)

        return draw

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0,1), in the shape of `like`, whose rows are this record's."""
        return self._draw(like, counter_random.to_uniform)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers."""
        return self._draw(like, counter_random.to_normal)

    def exponential(self, like: Tensor) -> Tensor:
        """Exponential numbers of mean one."""
        return self._draw(like, counter_random.to_exponential)

    def _selected(self) -> tuple[Stream, ...]:
        if self.chosen is None:
            return self.streams
        return tuple(self.streams[row] for row in self.chosen.tolist())

    def _draw(self, like: Tensor, convert: Convert) -> Tensor:
        streams = self._selected()
        size = like[0].numel() if streams else 0
        if not size:
            return torch.empty_like(like)
        blocks = _blocks_of(size)
        if len(streams) * size > MAX_DRAWN_AT_ONCE:
            sources = [_Source(stream.key, stream.take(blocks), blocks) for stream in streams]
            drawn: Numbers = _fill(sources, (len(streams), size), like.device, convert)
        elif computes_itself(like.device, len(streams) * size):
            starts, keys = [stream.take(blocks) for stream in streams], [stream.key for stream in streams]
            drawn = convert(counter_random.compute_on_device(keys, starts, blocks, like.device))
        else:
            words = np.stack([stream.take_words(blocks) for stream in streams])
            drawn = convert(_move(words, like.device))
        return torch.as_tensor(drawn)[:, :size].reshape(like.shape).to(like.dtype)


@dataclass(frozen=True)
class _Source:
    """Blocks of a stream that are computed wherever they are needed."""

    key: Key
    start: int
    blocks: int

    @property
    def half(self) -> int:
        """Half of its words: where `to_normal` takes angles from, the ones before being lengths."""
        return self.blocks * VALUES // 2

    def words(self, start: int, stop: int, device: torch.device) -> Words:
        """These of its words, (1, n)."""
        first, last = start // VALUES, _blocks_of(stop)
        at, count = self.start + first, last - first
        kept = slice(start - first * VALUES, stop - first * VALUES)
        if computes_itself(device, count * VALUES):
            return counter_random.compute_on_device([self.key], [at], count, device)[:, kept]
        return _move(counter_random.compute_on_host(self.key, at, count)[None, kept], device)

    def pair(self, start: int, stop: int, device: torch.device) -> Words:
        """The words of its first half from `start` to `stop`, and as far in the second half."""
        both = [self.words(at + start, at + stop, device) for at in (0, self.half)]
        if isinstance(both[0], Tensor):
            return torch.cat([torch.as_tensor(words) for words in both], 1)
        return np.concatenate(both, 1)


def _fill(
    sources: Sequence[_Source], shape: tuple[int, int], device: torch.device, convert: Convert
) -> Tensor:
    """All numbers (B, n) of the sources, made in pieces; the same as all at once."""
    out = torch.empty(shape, device=device)

    def fill(source: _Source, row: Tensor, start: int, stop: int) -> None:
        drawn = torch.as_tensor(convert(source.pair(start, stop, device)))[0]
        for at, part in zip((start, source.half + start), drawn.chunk(2), strict=True):
            kept = row[at : at + len(part)]
            kept.copy_(part[: len(kept)])

    _run_pieces(
        [
            partial(fill, source, row, *piece)
            for source, row in zip(sources, out, strict=True)
            for piece in _cut(0, source.half, device)
        ],
        device,
    )
    return out


def _fill_normal_part(
    sources: Sequence[_Source], first: int, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """Of the normal numbers of the sources those from `first` on, (B, n)."""
    out = torch.empty(shape, device=device)

    def fill(source: _Source, row: Tensor, start: int, stop: int) -> None:
        second = start >= source.half
        shift = source.half if second else 0
        both = counter_random.to_normal(source.pair(start - shift, stop - shift, device))
        row[start - first : stop - first] = torch.as_tensor(both)[0].chunk(2)[second]

    _run_pieces(
        [
            partial(fill, source, row, *piece)
            for source, row in zip(sources, out, strict=True)
            for piece in _cut(first, first + shape[1], device, source.half)
        ],
        device,
    )
    return out


def _cut(start: int, stop: int, device: torch.device, at: int = 0) -> Iterator[tuple[int, int]]:
    """Pieces of a range, none on both sides of `at`."""
    step = PIECE_VALUES if device.type == "cpu" else DEVICE_PIECE_VALUES
    while start < stop:
        end = min(start + step, stop, at if start < at else stop)
        yield start, end
        start = end


def _run_pieces(pieces: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Run them all, on several threads where the host computes."""
    list((_thread_pool().map if device.type == "cpu" else map)(lambda fill: fill(), pieces))


@dataclass(frozen=True)
class SampleNoise:
    """Noise for the samples of a certificate: sample i is the same in every job, in every batch and on every
    device, there but for rounding.

    With s blocks a sample, blocks i s to (i + 1) s of the seed's stream make sample i. `scale` is σ of the
    Gaussian, b of the Laplace distribution.
    """

    kind: Literal["gaussian", "laplace"]
    scale: float
    seed: int

    name = SAMPLE_STREAM

    def draw(self, like: Tensor, samples: range) -> Tensor:
        """Noise (n, C, H, W) for `like` (1, C, H, W), one row for each sample index."""
        size = like[0].numel()
        blocks = _blocks_of(size)
        device = like.device
        on_device = computes_itself(device, len(samples) * size)
        values = DEVICE_PIECE_VALUES if on_device else PIECE_VALUES
        rows = max(1, values // (VALUES * blocks))
        pieces = [samples[at : at + rows] for at in range(0, len(samples), rows)]
        out = torch.empty(len(samples), size, device=device)

        def fill(piece: range, into: Tensor) -> None:
            drawn = self._draw_piece(piece, blocks, device, on_device=on_device)[:, :size]
            if isinstance(drawn, Tensor):
                torch.mul(drawn, self.scale, out=into)
            else:
                np.multiply(drawn, self.scale, out=into.numpy())

        threaded = not on_device and size >= MIN_THREADED_VALUES
        list((_thread_pool().map if threaded else map)(fill, pieces, torch.split(out, rows)))
        return out.view(len(samples), *like.shape[1:])

    def _draw_piece(self, piece: range, blocks: int, device: torch.device, *, on_device: bool) -> Numbers:
        convert = counter_random.to_normal if self.kind == "gaussian" else counter_random.to_laplace
        key, start, count = (self.seed, _SAMPLES), piece.start * blocks, len(piece) * blocks
        if on_device:
            on_it = counter_random.compute_on_device([key], [start], count, device)
            return convert(on_it.view(len(piece), -1))
        words = counter_random.compute_on_host(key, start, count).reshape(len(piece), -1)
        return convert(_move(words, device))


def _blocks_of(size: int) -> int:
    """Blocks for as many values."""
    return -(-size // VALUES)


def _move(words: NDArray[np.int32], device: torch.device) -> Words:
    """Words of the host to where numbers are made of them: always on their device, since how they are rounded
    must not depend on how many there are.
    """
    return words if device.type == "cpu" else to_device(device, torch.from_numpy(words))


@cache
def _thread_pool() -> ThreadPoolExecutor:
    """Threads that draw: numpy releases the interpreter lock while it fills an array."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="noise")
