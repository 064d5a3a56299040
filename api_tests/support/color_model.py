"""A classifier of colors whose answers are known, its ONNX file, and labelled images for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn

from api_tests.support.external_data import zip_of
from api_tests.support.own_models import SIDE, onnx_file
from touchstone.images import Pixels, encode

COLORS = tuple(itertools.product((0.1, 0.9), repeat=3))
NAMES = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")
"""The corners of the color cube, in the order of `COLORS`."""

FIELDS: dict[str, Any] = {"id": "colors", "classes": list(NAMES), "input": {"height": SIDE, "width": SIDE}}


class NearestColor(nn.Module):
    """Negative squared distances, up to a constant, of the mean color of pixels in [0,1] to the corners."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 8)."""
        corners = torch.tensor(COLORS, dtype=x.dtype)
        return 20 * (2 * x.mean((2, 3)) @ corners.T - corners.square().sum(1))


def color_onnx() -> bytes:
    """The same network as a file."""
    corners = np.array(COLORS, np.float32)
    weights = {
        "w": np.repeat(40 * corners, SIDE * SIDE, 1) / SIDE**2,
        "b": -20 * np.square(corners).sum(1),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1),
    ]
    return onnx_file(nodes, weights, "y", classes=8)


def color_images(count: int = 40) -> tuple[list[Pixels], list[int]]:
    """Noisy images of one color each, and the colors' indices in turn."""
    draw, labels = np.random.default_rng(0), [i % 8 for i in range(count)]
    means = [np.array(COLORS[label]) for label in labels]
    values = [mean + draw.uniform(-0.1, 0.1, (SIDE, SIDE, 3)) for mean in means]
    return [(255 * one.clip(0, 1)).round().astype(np.uint8) for one in values], labels


def color_zip(count: int = 40, *, names: Sequence[str] = NAMES) -> bytes:
    """These images in a folder for each color."""
    images, labels = color_images(count)
    return zip_of(
        {f"{names[k]}/{i}.png": encode(x) for i, (x, k) in enumerate(zip(images, labels, strict=True))}
    )
