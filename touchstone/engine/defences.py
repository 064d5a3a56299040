"""Image transforms that defend a model, and how to attack through them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from touchstone.engine.device import to_device
from touchstone.engine.plans import expand_loops, rewrite_queries
from touchstone.engine.quantization import from_pixels, to_pixels
from touchstone.engine.queries import Answer, AnyQuery, PlanOf, Query

T = TypeVar("T")

BAND_VALUES = 2**18
"""Values of the images that a median is computed of at a time, for each place of its window."""


def straight_through(plan: PlanOf[T], defence: str) -> PlanOf[T]:
    """A plan whose queries all go through a defence before the model sees them.

    Gradients pass through it as if it were the identity: BPDA, Athalye, Carlini & Wagner 2018,
    1802.00420, section 4.1. `defence` is one of `fields.Defence`.
    """
    if defence == "none":
        return plan
    return rewrite_queries(expand_loops(plan), partial(_rewrite_with_defence, defence))


def _rewrite_with_defence(defence: str, query: AnyQuery) -> PlanOf[Answer]:
    if not isinstance(query, Query):
        raise TypeError("a defence applies to images, not to their noisy copies")
    return (yield replace(query, x=apply_defence(query.x, defence)))


def apply_defence(x: Tensor, defence: str) -> Tensor:
    """The images (B, C, H, W) in [0,1] as the defence leaves them: in 8 bits, since it works on files."""
    name, strength = defence.split("-")
    return _TRANSFORMS[name](x, int(strength))


def _reduce_bits(x: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced values, as near as 8 bits can hold it (Xu et al. 2018)."""
    steps = 2**bits - 1
    return from_pixels(to_pixels((from_pixels(to_pixels(x)) * steps).round() / steps))


def _compress_jpeg(x: Tensor, quality: int) -> Tensor:
    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _map_images(x, compress)


def _filter_median(x: Tensor, size: int) -> Tensor:
    """The median of a window around each value, edges repeated: that of Pillow's filter, which would hold the
    interpreter for a second at a million pixels.
    """
    pixels = to_pixels(x)
    filtered = pixels.new_empty(len(pixels), *pixels.shape[2:], pixels.shape[1]).permute(0, 3, 1, 2)
    down, right = (_repeat_ends(length, size, x.device) for length in pixels.shape[2:])
    band = max(1, BAND_VALUES // max(1, pixels[:, :, :1].numel()))
    for top in range(0, pixels.shape[2], band):
        rows = down[top : top + band + size - 1]
        window = pixels.index_select(2, rows).index_select(3, right)
        filtered[:, :, top : top + band] = _select_median(window, size)
    return from_pixels(filtered)


def _repeat_ends(length: int, size: int, device: torch.device) -> Tensor:
    """Indices of a line with its ends repeated, so that a window of `size` fits around each value."""
    reach = size // 2
    return torch.arange(-reach, length + reach, device=device).clamp_(0, length - 1)


def _select_median(padded: Tensor, size: int) -> Tensor:
    """The median of each window of (B, C, H + size - 1, W + size - 1), by exchanges of whole images."""
    height, width = (length - size + 1 for length in padded.shape[2:])
    values = [
        padded[:, :, top : top + height, left : left + width] for top in range(size) for left in range(size)
    ]
    for low, high, keeps_low, keeps_high in median_exchanges(size * size):
        pair = values[low], values[high]
        if keeps_low:
            values[low] = torch.minimum(*pair)
        if keeps_high:
            values[high] = torch.maximum(*pair)
    return values[size * size // 2]


@cache
def median_exchanges(count: int) -> Sequence[tuple[int, int, bool, bool]]:
    """Exchanges after which the middle one of `count` values is their median: two places, and whether the
    smaller and the larger of them is still needed (Batcher's merge exchange, Knuth 5.2.2M, without what
    leads elsewhere).
    """
    needed, kept = {count // 2}, []
    for low, high in reversed(list(_merge_exchanges(count))):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return kept[::-1]


def _merge_exchanges(count: int) -> Iterator[tuple[int, int]]:
    """Exchanges of two places that sort `count` values."""
    whole = 1 << (count - 1).bit_length() - 1
    step = whole
    while step:
        distance, offset, reach = step, 0, whole
        while True:
            yield from ((i, i + distance) for i in range(count - distance) if i & step == offset)
            if reach == step:
                break
            distance, offset, reach = reach - step, step, reach // 2
        step //= 2


def _map_images(x: Tensor, transform: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Every image (1 or 3, H, W) through Pillow."""
    rows = to_pixels(x).permute(0, 2, 3, 1).cpu().numpy()
    images = [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rows]
    pixels = np.stack([np.asarray(transform(image)) for image in images]).reshape(rows.shape)
    return from_pixels(to_device(x.device, torch.from_numpy(pixels)).permute(0, 3, 1, 2))


_TRANSFORMS = {"bits": _reduce_bits, "jpeg": _compress_jpeg, "median": _filter_median}
