"""Pieces of bounded bytes: what comes out is the same to the bit, however it was cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import touchstone
from api_tests.support.attack_tasks import RowByRow
from touchstone.engine import NORMS, Answer, Batcher, Logits, Noise, PlanOf, Query, Task, noise, pieces, snap
from touchstone.engine.pieces import RowSum, cut, rows_of_piece

SHAPE = (3, 8, 8)
VALUES = 3 * 8 * 8

SETTINGS = [
    ("nes", {"queries": 130, "samples": 20}),
    ("nes", {"queries": 90, "samples": 40, "norm": "l2", "eps": 0.1}),
    ("onepixel", {"queries": 150, "population": 40}),
    ("zoo", {"queries": 400, "batch": 16}),
    ("deepfool", {"steps": 5}),
    ("fab", {"steps": 4}),
    ("fab", {"steps": 4, "norm": "l2", "rivals": 3}),
    ("sparsefool", {"steps": 2, "inner_steps": 3}),
    ("apgdt", {"steps": 5, "eps": 0.004}),
    ("pgd", {"steps": 4, "eot": 20, "early_stop": False}),
    ("hopskipjump", {"queries": 120}),
]


@pytest.fixture(scope="module")
def model() -> touchstone.Model:
    return touchstone.wrap(RowByRow(waves=True))


def images(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randint(60, 196, (count, *SHAPE), generator=draw) / 255


@pytest.mark.parametrize(("name", "asked"), SETTINGS)
def test_attack_in_pieces_of_a_few_images_finds_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, model: touchstone.Model, name: str, asked: dict[str, Any]
) -> None:
    x = images(2)
    whole = touchstone.attack(model, x, None, name, **asked)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 12 * 4 * VALUES)
    monkeypatch.setattr(noise, "MAX_DRAWN_AT_ONCE", 100)
    monkeypatch.setattr(noise, "PIECE_VALUES", 56)
    cut_up = touchstone.attack(model, x, None, name, **asked)
    assert torch.equal(cut_up.images, whole.images)
    assert torch.equal(cut_up.success, whole.success)
    assert cut_up.queries.backward == whole.queries.backward
    extra = cut_up.queries.forward - whole.queries.forward
    assert extra >= 0 if name in ("deepfool", "fab", "sparsefool") else extra == 0


@pytest.mark.parametrize("count", [2, 15, 16, 17, 40, 255, 256, 257, 700])
@pytest.mark.parametrize("each", [1, 3, 16])
def test_sum_of_parts_is_that_of_the_whole_to_the_bit(count: int, each: int) -> None:
    rows = torch.randn(2, count, 192, generator=torch.Generator().manual_seed(count))
    total = RowSum(count)
    for start in range(0, count, each):
        total.add(rows[:, start : start + each])
    assert torch.equal(total.total(), rows.sum(1))


def streams(rows: int) -> Noise:
    return Noise.from_seeds([(3, row) for row in range(rows)], "test")


@pytest.mark.parametrize("size", [1, 7, 12, 64, 100])
@pytest.mark.parametrize("each", [1, 2, 5])
def test_normal_numbers_in_parts_are_those_of_one_draw(
    monkeypatch: pytest.MonkeyPatch, size: int, each: int
) -> None:
    like, count = torch.empty(2, size), 11
    expected, source = streams(2), streams(2)
    whole = expected.normal(torch.empty(2, count, size))
    monkeypatch.setattr(noise, "MAX_DRAWN_AT_ONCE", 0)
    monkeypatch.setattr(noise, "PIECE_VALUES", 24)
    draw = source.normal_parts(like, count)
    parts = [draw(slice(at, min(at + each, count))) for at in range(0, count, each)]
    assert torch.equal(torch.cat(parts, 1), whole)
    monkeypatch.undo()
    assert torch.equal(source.uniform(like), expected.uniform(like)), "the streams stand elsewhere"


@pytest.mark.parametrize("kind", ["uniform", "normal", "exponential"])
@pytest.mark.parametrize("size", [1, 20, 333])
def test_large_draws_are_made_in_pieces_of_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    expected, source = streams(3), streams(3)
    whole = getattr(expected, kind)(torch.empty(3, size))
    monkeypatch.setattr(noise, "MAX_DRAWN_AT_ONCE", 0)
    monkeypatch.setattr(noise, "PIECE_VALUES", 40)
    assert torch.equal(getattr(source, kind)(torch.empty(3, size)), whole)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_points_rounded_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    x0 = images(6)
    x = (x0 + 0.05 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    eps = torch.tensor([0.01, 0.5, 0.03, 3.0, 0.02, 40.0])
    whole = snap(x, x0, eps, NORMS[norm])
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    assert torch.equal(snap(x, x0, eps, NORMS[norm]), whole)


def test_pieces_hold_one_image_at_least_and_all_of_them_together() -> None:
    assert rows_of_piece(10**9) == 1
    assert rows_of_piece(1000, limit=12_000) == 3
    assert [piece.stop - piece.start for piece in cut(5, 2**23)] == [2, 2, 1]
    assert list(cut(0, 10)) == []


def ask(rows: int, side: int) -> PlanOf[None]:
    yield Logits(torch.zeros(rows, 1, side, side))


class RecordingOracle:
    """Answers anything, and notes the rows of each pass."""

    device, rows, fixed_rows, shared = torch.device("cpu"), 8, 8, True

    def __init__(self) -> None:
        self.passes: list[int] = []

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        self.passes.append(sum(map(len, queries)))
        return [Answer(torch.zeros(len(query), 2)) for query in queries]


def passes_of(*tasks: tuple[int, int]) -> list[int]:
    """The rows of the passes that answer a query of (rows, side) of each task."""
    oracle, batcher = RecordingOracle(), Batcher()
    for count, side in tasks:
        batcher.add(Task(ask(count, side), oracle))  # type: ignore[arg-type]
    while len(batcher):
        batcher.step()
    return oracle.passes


def test_rows_of_a_pass_are_bounded_by_the_bytes_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("touchstone.engine.device.PIECE_BYTES", 4 * 64 * 64 * 3)
    assert passes_of((7, 64)) == [3, 3, 1]
    assert passes_of((3, 128)) == [1, 1, 1]


def test_small_images_share_full_passes_beside_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("touchstone.engine.device.PIECE_BYTES", 4 * 64 * 64 * 3)
    assert sorted(passes_of((2, 8), (2, 128), (2, 8))) == [1, 1, 4]
