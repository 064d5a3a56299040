"""Operators of quantized networks. Integers are kept as floats, which hold them exactly.

Sums of products are computed in float64 and scaled in float32, where ONNX Runtime has int32 and float32.
Rounding has no gradient; with `straight_through`, which no file has, it passes the gradient on (Bengio et
al. 2013, 1308.3432). Operators called QLinear take each value as three inputs: integers, scale, zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.operators.constants import torch_dtype
from touchstone.models.onnx.operators.convolution import conv
from touchstone.models.onnx.registry import operator

ROUNDING = frozenset(
    (
        *("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "com.microsoft.QGemm"),
        *("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul", "com.microsoft.QLinearGlobalAveragePool"),
        *("com.microsoft.QLinearSigmoid", "com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearConcat"),
    )
)
"""Operators that round to integers."""


def _round(x: Tensor, straight_through: int) -> Tensor:
    """To the nearest integer, to the even one of two."""
    return x + (x.round() - x).detach() if straight_through else x.round()


def _saturate(x: Tensor, zero_point: Tensor | None, straight_through: int, kind: torch.dtype) -> Tensor:
    """Rounded, moved to the zero point, and clamped to what an integer type holds."""
    limits = torch.iinfo(kind)
    y = _round(x, straight_through)
    return (y if zero_point is None else y + zero_point.to(x.dtype)).clamp(limits.min, limits.max)


def _kind(zero_point: Tensor | None) -> torch.dtype:
    """The integer type of a value with this zero point."""
    return torch.uint8 if zero_point is None else zero_point.dtype


def _along(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """One number, or one for each position or block along an axis of x, to be broadcast over it."""
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if values.numel() == 1:
        return values.reshape(())
    return values.view([-1 if side == axis % x.ndim else 1 for side in range(x.ndim)])


def _center(x: Tensor, zero_point: Tensor | None, axis: int = 0, block: int = 0) -> Tensor:
    """Integers less their zero point, in float64."""
    return x.double() if zero_point is None else x.double() - _along(zero_point, x, axis, block).double()


@operator("QuantizeLinear", since=10)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    straight_through: int = 0,
) -> Tensor:
    kind = torch_dtype(output_dtype) if output_dtype else _kind(zero_point)
    point = None if zero_point is None else _along(zero_point, x, axis, block_size)
    return _saturate(x / _along(scale, x, axis, block_size), point, straight_through, kind)


@operator("DequantizeLinear", since=10)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    return _center(x, zero_point, axis, block_size).to(scale.dtype) * _along(scale, x, axis, block_size)


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor, *, straight_through: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, and the scale and zero point that the smallest and largest number give."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = torch.where(high == low, 1.0, (high - low) / 255)
    point = (-low / scale).round().clamp(0, 255)
    return _saturate(x / scale, point, straight_through, torch.uint8), scale, point


@operator("QLinearConv", since=10)
def qlinear_conv(*inputs: Tensor, straight_through: int = 0, **attributes: Any) -> Tensor:
    x, x_scale, x_point, weight, w_scale, w_point, y_scale, y_point = inputs[:8]
    bias = inputs[8].double() if len(inputs) > 8 and inputs[8] is not None else None
    total = conv(_center(x, x_point), _center(weight, w_point), bias, **attributes)
    scale = _along(x_scale * w_scale / y_scale, total, 1)
    return _saturate(total.float() * scale, y_point, straight_through, y_point.dtype)


@operator("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_point: Tensor | None = None,
    w_point: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    return conv(_center(x, x_point), _center(weight, w_point), **attributes)


@operator("QLinearMatMul", since=10)
def qlinear_matmul(*inputs: Tensor, straight_through: int = 0) -> Tensor:
    a, a_scale, a_point, b, b_scale, b_point, y_scale, y_point = inputs
    total = _center(a, a_point, -2) @ _center(b, b_point, -1)
    scale = _along(a_scale, total, -2) * _along(b_scale, total, -1) / y_scale
    return _saturate(total.float() * scale, y_point, straight_through, y_point.dtype)


@operator("MatMulInteger", since=10)
def matmul_integer(
    a: Tensor, b: Tensor, a_point: Tensor | None = None, b_point: Tensor | None = None
) -> Tensor:
    return _center(a, a_point, -2) @ _center(b, b_point, -1)


@operator("com.microsoft.QGemm")
def qgemm(
    *inputs: Tensor, alpha: float = 1.0, transA: int = 0, transB: int = 0, straight_through: int = 0
) -> Tensor:
    """The product, as integers where the scale of the result is given, otherwise as floats."""
    a, a_scale, a_point, b, b_scale, b_point = inputs[:6]
    bias, y_scale, y_point = (*inputs[6:], *[None] * 3)[:3]
    left, right = _center(a, a_point), _center(b, b_point, 0 if transB else 1)
    total = (left.t() if transA else left) @ (right.t() if transB else right)
    total = total if bias is None else total + bias.double()
    scale = alpha * a_scale * b_scale
    if y_scale is None:
        return total.float() * scale
    return _saturate(total.float() * (scale / y_scale), y_point, straight_through, _kind(y_point))


def _register_by_floats(name: str, function: Callable[..., Tensor]) -> None:
    """Register an operator that rounds the result of a function of floats."""

    @operator(f"com.microsoft.{name}")
    def quantized(*inputs: Tensor, straight_through: int = 0, **attributes: Any) -> Tensor:
        *values, y_scale, y_point = inputs
        y = function(*_dequantize_all(values), **attributes)
        return quantize_linear(y, y_scale, y_point, straight_through=straight_through)


def _dequantize_all(values: Sequence[Tensor]) -> list[Tensor]:
    triples = zip(values[::3], values[1::3], values[2::3], strict=True)
    return [dequantize_linear(x, scale, point) for x, scale, point in triples]


def _mean_of_maps(x: Tensor, *, channels_last: int = 0) -> Tensor:
    sides = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    return x.mean(sides, keepdim=True)


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator("com.microsoft.QLinearConcat")
def qlinear_concat(
    y_scale: Tensor, y_point: Tensor, *values: Tensor, axis: int, straight_through: int = 0
) -> Tensor:
    joined = torch.cat(_dequantize_all(values), axis)
    return quantize_linear(joined, y_scale, y_point, straight_through=straight_through)


_register_by_floats("QLinearAdd", torch.add)
_register_by_floats("QLinearMul", torch.mul)
_register_by_floats("QLinearGlobalAveragePool", _mean_of_maps)
_register_by_floats("QLinearSigmoid", torch.sigmoid)
_register_by_floats("QLinearLeakyRelu", _leaky_relu)
