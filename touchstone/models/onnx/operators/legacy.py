"""Forms of operators that files of opset 6 and below have, and of BatchNormalization up to opset 8.

Binary operators broadcast only where an attribute says so, and from an axis on; arguments of later versions
are attributes; operators that training changes say by an attribute whether it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.operators import (
    arithmetic,
    constants,
    matrices,
    normalization,
    reduction,
    resize,
    shapes,
)
from touchstone.models.onnx.operators.random import apply_dropout
from touchstone.models.onnx.registry import Known, operator

Axes = tuple[int, ...]


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def binary(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
        if not broadcast and a.shape != b.shape:
            raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ, without broadcast")
        return function(a, _align(b, a.ndim, axis))


def _align(b: Tensor, rank: int, axis: int | None) -> Tensor:
    """The second operand with its first dimension at an axis of the first operand."""
    if axis is None:
        return b
    after = rank - axis % rank - b.ndim
    if after < 0:
        raise ValueError(f"the shape {tuple(b.shape)} does not fit from axis {axis} on")
    return b.reshape(*b.shape, *[1] * after)


_OTHERS = {"Mul": arithmetic.multiply, "Div": arithmetic.div, "Pow": arithmetic.power}
for _name, _function in {**arithmetic.BINARY, **_OTHERS}.items():
    _register_binary(_name, _function)


@operator("Gemm")
def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, broadcast: int = 0, **attributes: Any) -> Tensor:
    return matrices.gemm(a, b, c, **attributes)


@operator("BatchNormalization", since=1)
def batch_normalization(
    *inputs: Tensor, is_test: int = 0, spatial: int = 1, outputs: int = 1, **attributes: Any
) -> Tensor:
    return batch_normalization_by_element(
        *inputs, spatial=spatial, outputs=outputs if is_test else 5, **attributes
    )


@operator("BatchNormalization", since=7)
def batch_normalization_by_element(
    *inputs: Tensor, spatial: int = 1, outputs: int = 1, **attributes: Any
) -> Tensor:
    """Without `spatial`, every element has statistics of its own, as if it were a channel."""
    x, statistics = inputs[0], inputs[1:]
    if spatial or statistics[0].ndim == 1:
        return normalization.batch_normalization(*inputs, outputs=outputs, **attributes)
    flat = (one.flatten() for one in statistics)
    y = normalization.batch_normalization(x.flatten(1), *flat, outputs=outputs, **attributes)
    return y.view(x.shape)


@operator("Dropout", since=1)
def dropout(
    x: Tensor, *, is_test: int = 0, ratio: float = 0.5, outputs: int = 1
) -> Tensor | tuple[Tensor, Tensor]:
    return apply_dropout(x, 0.0 if is_test else ratio, outputs)


@operator("Cast", since=1)
def cast(x: Tensor, *, to: str) -> Tensor:
    return constants.cast(x, to=TensorProto.DataType.Value(to.upper()))


@operator("Reshape", since=1)
def reshape(x: Tensor, *, shape: Axes) -> Tensor:
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])


@operator("Concat", since=1)
def concat(*xs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(xs, axis)


@operator("Pad", since=1)
def pad(x: Tensor, *, paddings: Axes, mode: str = "constant", value: float = 0.0) -> Tensor:
    return shapes.pad_sizes(x, pads=paddings, mode=mode, value=value)


@operator("Tile", since=1)
def tile(x: Tensor, tiles: Known, axis: Known) -> Tensor:
    repeats = [1] * x.ndim
    repeats[int(axis.item())] = int(tiles.item())
    return x.repeat(repeats)


@operator("TopK", since=1)
def top_k(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return reduction.top_k(x, np.array(k), axis=axis)


@operator("Upsample", since=1)
def upsample(x: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Tensor:
    linear = "linear" if mode == "bilinear" else mode
    return resize.upsample_by(x, scales=(1.0, 1.0, height_scale, width_scale), mode=linear)


@operator("PRelu", since=1)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return functional.prelu(x, slope)


@operator("ImageScaler")
def image_scaler(x: Tensor, *, bias: tuple[float, ...], scale: float = 1.0) -> Tensor:
    return scale * x + x.new_tensor(bias).view(-1, 1, 1)
