"""Counter-based random numbers: a number depends only on its key and its place in the stream, wherever it is
drawn.

Philox 4x64-10 (Salmon, Moraes, Dror & Shaw 2011, Parallel random numbers: as easy as 1, 2, 3) turns a key of
128 bits and a counter of 256 bits into a block of four words. numpy computes it on the host; `philox` does on
the device where the numbers are needed. Both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.device import to_device

VALUES = 8
"""Numbers that a block gives, of 32 bits each."""

DEVICE_VALUES = 2**20
"""Numbers from which on a GPU computes words itself: the host is expected to be faster for fewer."""

_MASK32, _SIZE64 = 2**32 - 1, 2**64
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10

Key = tuple[int, int]
"""Two words of 64 bits."""

Words = NDArray[Any] | Tensor
"""Random integers (n, m) in int32, m a multiple of `VALUES`, on the host or on a device."""

Numbers = NDArray[Any] | Tensor
"""What was made of words in float32: as many, in the same place."""

Convert = Callable[[Words], Numbers]


def computes_itself(device: torch.device, values: int) -> bool:
    """Whether so many numbers are computed on the device; otherwise the host sends it the words."""
    return device.type != "cpu" and values >= DEVICE_VALUES


class Stream:
    """The numbers of one key, of which `take` and `take_words` give each block once."""

    def __init__(self, key: Key) -> None:
        self.key, self._drawn = key, 0
        self._generator: np.random.Philox | None = None  # stands at the next block, or is None

    def take(self, blocks: int) -> int:
        """The counter of the first of the next blocks, which are computed elsewhere."""
        self._drawn, self._generator = self._drawn + blocks, None
        return self._drawn - blocks

    def take_words(self, blocks: int) -> NDArray[np.int32]:
        """The next blocks, (8 * blocks,)."""
        if self._generator is None:
            self._generator = _open_at(self.key, self._drawn)
        self._drawn += blocks
        return self._generator.random_raw(4 * blocks).view(np.int32)


def compute_on_host(key: Key, start: int, blocks: int) -> NDArray[np.int32]:
    """The blocks from a counter on, (8 * blocks,)."""
    return _open_at(key, start).random_raw(4 * blocks).view(np.int32)


def compute_on_device(
    keys: Sequence[Key], starts: Sequence[int], blocks: int, device: torch.device
) -> Tensor:
    """The same for several keys, (n, 8 * blocks), without waiting for the device."""
    heads = [
        [*map(_signed, key), _signed(start % _SIZE64), _signed(start >> 64)]
        for key, start in zip(keys, starts, strict=True)
    ]
    key0, key1, start, carry = to_device(device, torch.tensor(heads).T.contiguous())[:, :, None]
    low = start + torch.arange(blocks, device=device)
    high = carry + (low ^ -(2**63) < start ^ -(2**63))  # as unsigned words: whether the low one overflowed
    zero = torch.zeros_like(start)
    words = torch.stack(philox((low, high, zero, zero), (key0, key1)), -1)
    return words.view(torch.int32).flatten(1)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor | int]) -> list[Tensor]:
    """The four words of the blocks with these counters, each of four words; shapes broadcast.

    Words are bit patterns in int64. Products of integers keep their low 64 bits on every device.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = (one if isinstance(one, Tensor) else _signed(one) for one in key)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = _add(k0, _KEY_STEPS[0]), _add(k1, _KEY_STEPS[1])
    return [c0, c1, c2, c3]


def to_uniform(words: Words) -> Numbers:
    """Uniform in [0, 1): multiples of 2^-24, the same on every device."""
    return _to_float((words >> 8) & 0xFFFFFF) * 2**-24


def to_normal(words: Words) -> Numbers:
    """Standard normal (Box & Muller 1958): the first half of a row's words gives lengths, the second angles.

    Devices agree but for the rounding of their logarithms, sines and cosines.
    """
    xp = _library_of(words)
    half = words.shape[1] // 2
    length = xp.sqrt(xp.log(_unit_interval(words[:, :half])) * -2)
    angle = _to_float(words[:, half:]) * (math.pi * 2**-31)
    numbers: Numbers = xp.concatenate([length * xp.cos(angle), length * xp.sin(angle)], 1)
    return numbers


def to_exponential(words: Words) -> Numbers:
    """Exponential of mean one."""
    numbers: Numbers = -_library_of(words).log(_unit_interval(words))
    return numbers


def to_laplace(words: Words) -> Numbers:
    """Laplace of scale one: an exponential with the sign of the bit that it does not use."""
    numbers: Numbers = _library_of(words).copysign(to_exponential(words), _to_float(words))
    return numbers


def _library_of(words: Words) -> Any:
    return torch if isinstance(words, Tensor) else np


def _unit_interval(words: Words) -> Numbers:
    """Uniform in (0, 1], finer towards zero, from 31 bits each."""
    return (_to_float(words & 0x7FFFFFFF) + 0.5) * 2**-31


def _to_float(words: Words) -> Numbers:
    """In float32, rounded to the nearest."""
    return words.to(torch.float32) if isinstance(words, Tensor) else words.astype(np.float32)


def _open_at(key: Key, start: int) -> np.random.Philox:
    before = (start - 1) % _SIZE64**4  # numpy counts up before it computes a block
    counter = np.array([before >> shift & (_SIZE64 - 1) for shift in (0, 64, 128, 192)], dtype=np.uint64)
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The high and the low 64 bits of a product, by schoolbook multiplication of unsigned halves."""
    b_high, b_low = b >> 32, b & _MASK32
    a_high, a_low = _shift(a), a & _MASK32
    middle = _shift(a_low * b_low).add_(a_high, alpha=b_low)
    low = (middle & _MASK32).add_(a_low, alpha=b_high)
    return _shift(middle).add_(a_high, alpha=b_high).add_(_shift(low)), a * _signed(b)


def _shift(a: Tensor) -> Tensor:
    """The high 32 of 64 bits."""
    return (a >> 32).bitwise_and_(_MASK32)


def _add(a: Tensor | int, b: int) -> Tensor | int:
    return a + _signed(b) if isinstance(a, Tensor) else _signed(a + b)


def _signed(word: int) -> int:
    """The number that has the bits of this word in int64."""
    return (word + 2**63) % _SIZE64 - 2**63
