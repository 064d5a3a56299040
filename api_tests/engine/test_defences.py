"""Defences: the median is Pillow's, whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from touchstone.engine import apply_defence, defences
from touchstone.engine.defences import median_exchanges


def noisy_images(rows: int, channels: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (rows, channels, height, width), generator=draw) / 255


def filter_with_pillow(x: Tensor, size: int) -> Tensor:
    rows = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rows]
    filtered = [np.asarray(image.filter(ImageFilter.MedianFilter(size))) for image in images]
    pixels = torch.from_numpy(np.stack(filtered).reshape(rows.shape)).permute(0, 3, 1, 2)
    return pixels.to(torch.float32) / 255


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 28, 28), (1, 3, 40, 9), (1, 1, 9, 61)])
def test_median_is_that_of_pillow(
    monkeypatch: pytest.MonkeyPatch, size: int, shape: tuple[int, int, int, int]
) -> None:
    x = noisy_images(*shape)
    expected = filter_with_pillow(x, size)
    filtered = apply_defence(x, f"median-{size}")
    assert torch.equal(filtered, expected)
    assert filtered.stride() == expected.stride(), "another layout may be rounded differently later"
    monkeypatch.setattr(defences, "BAND_VALUES", 1)
    assert torch.equal(apply_defence(x, f"median-{size}"), expected)


@pytest.mark.parametrize("count", [9, 25, 49])
def test_exchanges_bring_the_median_to_the_middle(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 20, (200, count))
    expected = np.median(values, axis=1)
    for low, high, keeps_low, keeps_high in median_exchanges(count):
        pair = values[:, [low, high]]
        if keeps_low:
            values[:, low] = pair.min(1)
        if keeps_high:
            values[:, high] = pair.max(1)
    assert (values[:, count // 2] == expected).all()
