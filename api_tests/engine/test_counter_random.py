"""The counter-based generator beside published vectors, numpy and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from touchstone.engine import counter_random, noise as noise_module
from touchstone.engine.counter_random import Convert, Stream, philox
from touchstone.engine.noise import Noise, SampleNoise

ONES = "ffffffffffffffff"
PUBLISHED = [
    (
        ["0" * 16] * 4,
        ["0" * 16] * 2,
        ["16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"],
    ),
    (
        [ONES] * 4,
        [ONES] * 2,
        ["87b092c3013fe90b", "438c3c67be8d0224", "9cc7d7c69cd777b6", "a09caebf594f0ba0"],
    ),
    (
        ["243f6a8885a308d3", "13198a2e03707344", "a4093822299f31d0", "082efa98ec4e6c89"],
        ["452821e638d01377", "be5466cf34e90c6c"],
        ["a528f45403e61d95", "38c72dbd566e9788", "a5a1610e72fd18b5", "57bd43b5e52b7fe6"],
    ),
]
"""philox4x64 10 in kat_vectors of Random123: counter, key, and the block."""


def to_words(digits: list[str]) -> list[Tensor]:
    return list(torch.from_numpy(np.array([int(one, 16) for one in digits], dtype=np.uint64).view(np.int64)))


@pytest.mark.parametrize(("counter", "key", "block"), PUBLISHED)
def test_blocks_are_the_published_ones(counter: list[str], key: list[str], block: list[str]) -> None:
    found = philox(to_words(counter), to_words(key))
    assert [f"{int(word) % 2**64:016x}" for word in found] == block
    assert [int(word) for word in philox(to_words(counter), [int(one, 16) for one in key])] == [
        int(word) for word in found
    ]


CPU = torch.device("cpu")
PLACES = [((0, 0), 0), ((2**64 - 1, 3), 2**64 - 2), ((7, 2**63), 2**63 * 98), ((5, 9 << 32 | 4), 2**64 - 3)]
"""Keys and counters, some of which pass 2^64 on the way."""


def test_device_computes_the_words_of_the_host() -> None:
    keys, starts = [key for key, _ in PLACES], [start for _, start in PLACES]
    words = counter_random.compute_on_device(keys, starts, 5, CPU)
    for found, key, start in zip(words, keys, starts, strict=True):
        assert np.array_equal(found.numpy(), counter_random.compute_on_host(key, start, 5))
        assert np.array_equal(found[24:], counter_random.compute_on_host(key, start + 3, 2))


@pytest.mark.parametrize(("counter", "key", "block"), PUBLISHED)
def test_host_computes_the_published_blocks(counter: list[str], key: list[str], block: list[str]) -> None:
    start = sum(int(word, 16) << 64 * place for place, word in enumerate(counter))
    words = counter_random.compute_on_host((int(key[0], 16), int(key[1], 16)), start, 1).view(np.uint64)
    assert [f"{word:016x}" for word in words.tolist()] == block


KINDS: dict[str, tuple[Convert, Callable[..., Any]]] = {
    "uniform": (counter_random.to_uniform, stats.uniform.cdf),
    "normal": (counter_random.to_normal, stats.norm.cdf),
    "exponential": (counter_random.to_exponential, stats.expon.cdf),
    "laplace": (counter_random.to_laplace, stats.laplace.cdf),
}


def draw_words(seed: int, rows: int, blocks: int) -> NDArray[np.int32]:
    return counter_random.compute_on_host((seed, 0), 0, rows * blocks).reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_numbers_have_their_distribution(kind: str, seed: int) -> None:
    convert, cdf = KINDS[kind]
    drawn = np.asarray(convert(draw_words(seed, 400, 50)), dtype=np.float64)
    assert stats.kstest(drawn.ravel(), cdf).pvalue > 1e-3
    assert stats.kstest(drawn[:, 0], cdf).pvalue > 1e-3, "of one place in all rows"
    correlation = np.corrcoef(drawn[:, ::25], rowvar=False) - np.eye(16)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(len(drawn))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_words_give_finite_numbers(kind: str) -> None:
    ends = np.array([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], dtype=np.int32)
    lengths, angles = np.meshgrid(ends, ends)
    drawn = np.asarray(KINDS[kind][0](np.concatenate([lengths, angles]).reshape(1, -1)))
    assert np.isfinite(drawn).all()
    assert kind != "uniform" or (drawn.min(), drawn.max()) == (0, 1 - 2**-24)
    assert kind != "normal" or np.abs(drawn).max() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_makes_the_numbers_of_numpy_but_for_rounding(kind: str) -> None:
    words = draw_words(3, 5, 4_096)
    ours, theirs = KINDS[kind][0](words), KINDS[kind][0](torch.from_numpy(words))
    assert isinstance(theirs, Tensor)
    assert (ours.dtype, theirs.dtype) == (np.float32, torch.float32)
    assert np.abs(np.asarray(ours) - theirs.numpy()).max() <= (0 if kind == "uniform" else 4e-6)


def test_normal_numbers_equal_those_of_double_precision_but_for_rounding() -> None:
    words = draw_words(3, 1, 4_096)
    length, angle = np.split(words.astype(np.float64), 2, 1)
    radius, angle = np.sqrt(-2 * np.log((length % 2**31 + 0.5) * 2**-31)), angle * math.pi * 2**-31
    exact = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    assert np.abs(counter_random.to_normal(words) - exact).max() < 4e-6


def fill(noise: Noise, kind: str, like: Tensor) -> Tensor:
    drawn: Tensor = getattr(noise, kind)(like)
    return drawn


@pytest.mark.parametrize("size", [1, 3, 8, 31, 250])
@pytest.mark.parametrize("kind", ["uniform", "normal", "exponential"])
def test_row_is_the_same_in_every_batch(kind: str, size: int) -> None:
    keys, like = [(seed, 1) for seed in range(67)], torch.zeros(67, size)
    whole = fill(Noise.from_seeds(keys, "t"), kind, like)
    for start, stop in [(0, 1), (3, 66), (64, 67), (13, 14)]:
        some = Noise.from_seeds(keys[start:stop], "t")
        assert torch.equal(fill(some, kind, like[start:stop]), whole[start:stop])


@pytest.mark.parametrize("shape", [(3, 37, 11), (1, 28, 28), (3, 80, 90)])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_sample_is_the_same_in_every_batch(kind: Any, shape: tuple[int, ...]) -> None:
    noise, like = SampleNoise(kind, 0.25, 5), torch.zeros(1, *shape)
    for first in (0, 2**63 - 2, 2**63):
        whole = noise.draw(like, range(first, first + 40))
        for start, stop in [(0, 1), (7, 39), (39, 40)]:
            assert torch.equal(noise.draw(like, range(first + start, first + stop)), whole[start:stop])


def test_device_that_computes_words_itself_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, like, image = [(seed, 2) for seed in range(5)], torch.zeros(5, 3, 7), torch.zeros(1, 1, 9, 9)

    def draw() -> list[Tensor]:
        noise = Noise.from_seeds(keys, "t")
        samples = range(2**63 - 3, 2**63 + 30)
        laplace = SampleNoise("laplace", 0.25, 5).draw(image, samples)
        return [
            noise.uniform(like),
            laplace,
            noise.normal(like),
            noise.uniform(like),
            noise.exponential(like),
        ]

    expected, computed = draw(), []
    original = counter_random.compute_on_device
    monkeypatch.setattr(noise_module, "computes_itself", lambda _device, _values: True)
    monkeypatch.setattr(noise_module, "DEVICE_PIECE_VALUES", 1_000)
    monkeypatch.setattr(
        counter_random, "compute_on_device", lambda *asked: computed.append(asked) or original(*asked)
    )
    found = draw()
    assert len(computed) == 7, "a call for each draw, and for each piece of the samples"
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[3], expected[3])
    assert max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) < 4e-6


def test_streams_move_on_alike_wherever_they_are_computed() -> None:
    stream, other = Stream((5, 6)), Stream((5, 6))
    drawn = [stream.take_words(2), stream.take_words(3)]
    assert other.take(2) == 0
    drawn.append(stream.take_words(1))
    assert np.array_equal(other.take_words(3), drawn[1])
    assert other.take(1) == 5
    assert np.array_equal(counter_random.compute_on_host((5, 6), 5, 1), drawn[2])


def test_streams_move_on_wherever_they_are_drawn_from() -> None:
    like = torch.zeros(3, 5)
    noise = Noise.from_seeds([(0, row) for row in range(3)], "t")
    first = noise.normal(like)
    some = noise[torch.tensor([False, True, True])][torch.tensor([1])]
    assert len(some) == 1
    third = some.normal(like[:1])
    again = Noise.from_seeds([(0, row) for row in range(3)], "t")
    assert torch.equal(again.normal(like), first)
    both = again.normal(like)
    assert torch.equal(both[2:], third)
    later = Noise.cat([noise[:1], some, noise[1:2]]).normal(like)
    assert torch.equal(later[0], both[0])
    assert torch.equal(later[2], both[1])
    assert torch.equal(later[1], again.normal(like)[2])


def test_seeds_rows_and_purposes_are_streams_of_their_own() -> None:
    like = torch.zeros(1, 8)
    keys = [(0, 0), (1, 0), (0, 1), (2**63 - 1, 0), (0, 2**31)]
    drawn = [Noise.from_seeds([key], purpose).uniform(like) for key in keys for purpose in ("pgd", "square")]
    drawn.append(SampleNoise("gaussian", 1, 0).draw(like[:, :, None, None], range(1)).flatten(1))
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == len(drawn)
