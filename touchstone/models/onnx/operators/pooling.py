"""Poolings: the largest, the mean and the p-norm of windows and of whole feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.operators.arithmetic import raise_to
from touchstone.models.onnx.operators.windows import Sizes, Window, margins, window
from touchstone.models.onnx.registry import operator

_MAX = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_MEAN = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
    outputs: int = 1,
) -> Tensor:
    if outputs > 1:
        raise ValueError("the indices of the largest elements are not supported as an output")
    sizes = tuple(x.shape[2:])
    place = window(sizes, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    if _pads_natively(place):
        return _MAX[x.ndim](
            x, place.kernel, place.strides, place.begin, place.dilations, ceil_mode=bool(ceil_mode)
        )
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = functional.pad(x, _pool_margins(place, sizes, ceil=bool(ceil_mode)), value=lowest)
    return _MAX[x.ndim](padded, place.kernel, place.strides, 0, place.dilations)


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    sizes = tuple(x.shape[2:])
    place = window(sizes, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    if _pads_natively(place) and set(place.dilations) == {1}:
        return _MEAN[x.ndim](
            x, place.kernel, place.strides, place.begin, bool(ceil_mode), bool(count_include_pad)
        )
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = functional.pad(counted, place.margins, value=1.0)
        sides = tuple(counted.shape[2:])
        unpadded = Window(place.kernel, place.strides, place.dilations, *[(0,) * len(sizes)] * 2)
        reach = unpadded.overhang(sides, place.positions(sizes, ceil=bool(ceil_mode)))
        counted = functional.pad(counted, margins((0,) * len(sizes), reach))
    else:
        counted = functional.pad(counted, _pool_margins(place, sizes, ceil=bool(ceil_mode)))
    total = _window_sums(functional.pad(x, _pool_margins(place, sizes, ceil=bool(ceil_mode))), place)
    return total / _window_sums(counted, place)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    p: int = 2,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    sizes = tuple(x.shape[2:])
    place = window(sizes, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad)
    padded = functional.pad(x, _pool_margins(place, sizes, ceil=bool(ceil_mode)))
    return _window_sums(raise_to(padded.abs(), p), place) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.flatten(2).max(2).values.view(*x.shape[:2], *[1] * (x.ndim - 2))


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return raise_to(x.abs(), p).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / p)


def _pads_natively(place: Window) -> bool:
    """Whether PyTorch's own pooling can pad: equally on both sides, by at most half a window."""
    return place.symmetric and all(2 * b <= k for b, k in zip(place.begin, place.kernel, strict=True))


def _pool_margins(place: Window, sizes: Sizes, *, ceil: bool) -> list[int]:
    """The padding with which exactly the right number of windows fits."""
    return margins(place.begin, place.overhang(sizes, place.positions(sizes, ceil=ceil)))


def _window_sums(x: Tensor, place: Window) -> Tensor:
    """The sum of each window."""
    channels = x.shape[1]
    ones = x.new_ones(channels, 1, *place.kernel)
    return _CONV[x.ndim](x, ones, None, place.strides, 0, place.dilations, channels)
