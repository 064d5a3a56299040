"""What stands between an image and the network: channels, resize, crop and normalisation, differentiable
at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.manifest import InputSpec, Manifest

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601-2), as in Pillow's mode L."""


@dataclass(frozen=True)
class Sight:
    """How a network sees an image: the linear map from pixels in [0,1] to its input.

    Resizing is separable and linear, so it is done as two small matrices, crop included: one from the left
    for the rows of the image and one from the right for its columns. Their transposes are the gradient.
    """

    spec: InputSpec | None  # None: images come at the size the network takes
    mean: Tensor | None  # (1, C, 1, 1)
    std: Tensor | None

    @classmethod
    def of(cls, manifest: Manifest, device: torch.device) -> Sight:
        """The sight that a manifest describes."""
        return cls(manifest.input, per_channel(manifest.mean, device), per_channel(manifest.std, device))

    def place(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0,1] at the network's size, still in [0,1] but for overshoot."""
        return x if self.spec is None else self._resize(_recolour(x, self.spec.channels), self.spec)

    def see(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0,1] as the network's input (B, C, h, w)."""
        x = self.place(x)
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        return x

    @staticmethod
    def _resize(x: Tensor, spec: InputSpec) -> Tensor:
        height, width = x.shape[-2:]
        whole_height, whole_width = resized_size(height, width, spec)
        if (height, width) == (whole_height, whole_width) == (spec.height, spec.width):
            return x
        rows = resampling(height, whole_height, spec.height, spec.interpolation).to(x)
        columns = resampling(width, whole_width, spec.width, spec.interpolation).to(x)
        return rows @ (x @ columns.T)


def per_channel(values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    """Numbers, one a channel, shaped to be broadcast over images."""
    return None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """The size before cropping: the shorter side becomes `spec.resize`, the longer one is rounded down."""
    if spec.resize is None:
        return spec.height, spec.width
    if height <= width:
        return spec.resize, max(spec.resize, int(spec.resize * width / height))
    return max(spec.resize, int(spec.resize * height / width)), spec.resize


@lru_cache(maxsize=64)
def resampling(size: int, resized: int, kept: int, interpolation: str) -> Tensor:
    """The (kept, size) matrix that resizes a line of `size` values to `resized`, antialiased, and keeps its
    centre.

    It is what resizing does to the columns of the identity. A centre that would need padding is zero there.
    """
    unit = torch.eye(size, dtype=torch.float64)[None, None]
    lines = functional.interpolate(unit, size=(resized, size), mode=interpolation, antialias=True)[
        0, 0
    ].float()
    start = round((resized - kept) / 2)
    if start < 0:
        return functional.pad(lines, (0, 0, -start, kept - resized + start))
    return lines[start : start + kept].contiguous()


def _recolour(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    luma = torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * luma).sum(1, keepdim=True)
