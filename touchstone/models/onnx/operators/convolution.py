"""Convolutions in one, two and three dimensions, and their transposes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.operators.windows import Sizes, halves, margins, window
from touchstone.models.onnx.registry import Known, operator

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}


MAX_BLOCK = 1024
"""Maximum elements of a block of Col2Im, whose square is held in memory."""


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    kernel = _kernel(weight, kernel_shape)
    place = window(
        tuple(x.shape[2:]), kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    if place.symmetric:
        return _CONV[x.ndim](x, weight, bias, place.strides, place.begin, place.dilations, group)
    padded = functional.pad(x, place.margins)
    return _CONV[x.ndim](padded, weight, bias, place.strides, 0, place.dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    sizes, kernel = tuple(x.shape[2:]), _kernel(weight, kernel_shape)
    place = window(sizes, kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=_notset(auto_pad))
    extra = output_padding or (0,) * len(sizes)
    whole = tuple((n - 1) * s + span for n, s, span in zip(sizes, place.strides, place.spans, strict=True))
    begin, end = place.begin, place.end
    if auto_pad.startswith("SAME") and not output_shape:
        output_shape = tuple(n * s for n, s in zip(sizes, place.strides, strict=True))
    if output_shape:
        wanted = zip(whole, extra, output_shape[-len(sizes) :], strict=True)
        surplus = tuple(size + more - out for size, more, out in wanted)
        begin, end = halves(tuple(max(side, 0) for side in surplus), upper=auto_pad != "SAME_LOWER")
        extra = tuple(more - min(side, 0) for more, side in zip(extra, surplus, strict=True))
    full = _TRANSPOSED[x.ndim](x, weight, None, place.strides, 0, 0, group, place.dilations)
    crop = margins(tuple(-b for b in begin), tuple(more - e for more, e in zip(extra, end, strict=True)))
    y = functional.pad(full, crop) if any(crop) else full
    return y if bias is None else y + bias.view(-1, *[1] * len(sizes))


@operator("Col2Im", since=18)
def col2im(
    x: Tensor,
    image_shape: Known,
    block_shape: Known,
    *,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Blocks summed where they overlap: a transposed convolution, each of whose kernels has a single one."""
    sizes, block = tuple(map(int, image_shape)), tuple(map(int, block_shape))
    place = window(sizes, block, strides=strides, dilations=dilations, pads=pads, auto_pad="NOTSET")
    count = math.prod(block)
    if count > MAX_BLOCK:
        raise ValueError(f"blocks of {count} elements; at most {MAX_BLOCK} are supported")
    blocks = x.reshape(-1, count, *place.positions(sizes, ceil=False))
    ones = torch.eye(count, dtype=x.dtype, device=x.device).view(count, 1, *block)
    full = _TRANSPOSED[blocks.ndim](blocks, ones, stride=place.strides, dilation=place.dilations)
    after = zip(sizes, place.begin, full.shape[2:], strict=True)
    crop = margins(tuple(-b for b in place.begin), tuple(size + b - found for size, b, found in after))
    return functional.pad(full, crop).view(len(x), -1, *sizes)


def _notset(auto_pad: str) -> str:
    """For a transposed convolution, "same" determines the output size, not the window's position."""
    return "NOTSET" if auto_pad.startswith("SAME") else auto_pad


def _kernel(weight: Tensor, declared: Sizes | None) -> Sizes:
    kernel = tuple(weight.shape[2:])
    if declared and declared != kernel:
        raise ValueError(f"kernel_shape {declared} is not that of the weights, {kernel}")
    return kernel
