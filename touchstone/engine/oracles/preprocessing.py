"""From an image to the network's input: channels, resize, crop and normalization, differentiable at any
image size; and the same for 8-bit files, bit for bit as Pillow does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from touchstone.engine.device import to_device
from touchstone.engine.quantization import from_pixels, on_lattice, to_pixels
from touchstone.images import Pixels
from touchstone.models.manifest import InputSpec, Manifest

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601-2), as in Pillow's mode L."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input: the map from pixels in [0,1].

    Resizing is separable, and linear except for overshoot, which is clipped. So it is done as two small
    matrices, crop included: one from the right for the columns of the image and one from the left for its
    rows. Their transposes are the gradient. Pillow rounds to 8 bits in between, which has no gradient:
    `apply` is within about one level of Pillow's result, and `apply_to_files` equals it.
    """

    spec: InputSpec | None  # None: images come at the size the network takes
    mean: Tensor | None  # (1, C, 1, 1)
    std: Tensor | None

    @classmethod
    def from_manifest(cls, manifest: Manifest, device: torch.device) -> Preprocessing:
        """The preprocessing that a manifest describes."""
        return cls(manifest.input, per_channel(manifest.mean, device), per_channel(manifest.std, device))

    def resize(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0,1] at the network's size, still in [0,1]."""
        return x if self.spec is None else self._resample(_convert_channels(x, self.spec.channels), self.spec)

    def resize_files(self, x: Tensor) -> Tensor:
        """The same for images that 8-bit files hold, by Pillow, as the model's own pipeline does it.

        Images off the 8-bit lattice, which no file holds, are resized as they are.
        """
        if self.spec is None or _fits(x, self.spec) or not on_lattice(x):
            return self.resize(x)
        pixels = to_pixels(x).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([_resize_with_pillow(one, self.spec) for one in pixels])
        return from_pixels(to_device(x.device, torch.from_numpy(resized)).permute(0, 3, 1, 2))

    def apply(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0,1] as the network's input (B, C, h, w)."""
        return self.normalize(self.resize(x))

    def apply_to_files(self, x: Tensor) -> Tensor:
        """The same for images that 8-bit files hold."""
        return self.normalize(self.resize_files(x))

    def normalize(self, x: Tensor) -> Tensor:
        """Images (B, C, h, w) at the network's size: in its order of channels, less the mean and divided by
        the standard deviation.
        """
        x = x.flip(1) if self.spec is not None and self.spec.channel_order == "bgr" else x
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std

    @staticmethod
    def _resample(x: Tensor, spec: InputSpec) -> Tensor:
        if _fits(x, spec):
            return x
        height, width = x.shape[-2:]
        whole_height, whole_width = resized_size(height, width, spec)
        top, left = _crop_start(whole_height, spec.height, spec), _crop_start(whole_width, spec.width, spec)
        rows = resampling_matrix(height, whole_height, spec.height, spec.interpolation, top).to(x)
        columns = resampling_matrix(width, whole_width, spec.width, spec.interpolation, left).to(x)
        return (rows @ (x @ columns.T).clamp(0, 1)).clamp(0, 1)


def per_channel(values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    """Numbers, one for each channel, shaped to be broadcast over images."""
    return None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """The size before cropping: the shorter side becomes `spec.resize`, the longer one is rounded down."""
    if spec.resize is None:
        return spec.height, spec.width
    if isinstance(spec.resize, tuple):
        return spec.resize
    if height <= width:
        return spec.resize, max(spec.resize, int(spec.resize * width / height))
    return max(spec.resize, int(spec.resize * height / width)), spec.resize


def _crop_start(size: int, cropped: int, spec: InputSpec) -> int:
    """Where the center begins; see `InputSpec.crop_rounding`."""
    return (size - cropped) // 2 if spec.crop_rounding == "down" else round((size - cropped) / 2)


@lru_cache(maxsize=64)
def resampling_matrix(
    size: int, resized: int, cropped: int, interpolation: str, start: int | None = None
) -> Tensor:
    """The (kept, size) matrix that resizes a line of `size` values to `resized`, antialiased, and keeps
    `cropped` of them from `start` on, by default its center.

    It is what resizing does to the columns of the identity. A center that would need padding is zero there.
    """
    unit = torch.eye(size, dtype=torch.float64)[None, None]
    lines = functional.interpolate(unit, size=(resized, size), mode=interpolation, antialias=True)[
        0, 0
    ].float()
    start = round((resized - cropped) / 2) if start is None else start
    if start < 0:
        return functional.pad(lines, (0, 0, -start, cropped - resized + start))
    return lines[start : start + cropped].contiguous()


def _fits(x: Tensor, spec: InputSpec) -> bool:
    """Whether images (B, C, H, W) need neither other channels nor a resize nor a crop."""
    height, width = x.shape[-2:]
    size = (spec.height, spec.width)
    return x.shape[1] == spec.channels and resized_size(height, width, spec) == size == (height, width)


def _convert_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    luma = torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * luma).sum(1, keepdim=True)


def _resize_with_pillow(pixels: Pixels, spec: InputSpec) -> Pixels:
    """One 8-bit image (H, W, C) as the network's pipeline would prepare it, (height, width, channels)."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image = image.convert("L" if spec.channels == 1 else "RGB")
    height, width = resized_size(image.height, image.width, spec)
    image = image.resize((width, height), _FILTERS[spec.interpolation])
    left, top = _crop_start(width, spec.width, spec), _crop_start(height, spec.height, spec)
    image = image.crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)
