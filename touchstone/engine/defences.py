"""Image transforms that defend a model, and how to attack through them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from touchstone.engine.device import to_device
from touchstone.engine.plans import expand_loops, rewrite_queries
from touchstone.engine.quantization import from_pixels, to_pixels
from touchstone.engine.queries import Answer, AnyQuery, PlanOf, Query

T = TypeVar("T")


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
    return _map_images(x, lambda image: image.filter(ImageFilter.MedianFilter(size)))


def _map_images(x: Tensor, transform: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Every image (1 or 3, H, W) through Pillow."""
    rows = to_pixels(x).permute(0, 2, 3, 1).cpu().numpy()
    images = [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in rows]
    pixels = np.stack([np.asarray(transform(image)) for image in images]).reshape(rows.shape)
    return from_pixels(to_device(x.device, torch.from_numpy(pixels)).permute(0, 3, 1, 2))


_TRANSFORMS = {"bits": _reduce_bits, "jpeg": _compress_jpeg, "median": _filter_median}
