"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from touchstone.models.onnx.registry import operator, register_elementwise

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": lambda x: torch.where(x.isnan(), x, x.sign()),
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}
for _name, _function in _UNARY.items():
    register_elementwise(_name, _function)


def _register_binary(name: str, function: Callable[..., Any]) -> None:
    @operator(name, since=7)  # before, operators broadcast in another way
    def binary(a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = function(a, b)
        return y


BINARY: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Add": torch.add,
        "Sub": torch.sub,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "Less": torch.lt,
        "GreaterOrEqual": torch.ge,
        "LessOrEqual": torch.le,
        "And": torch.logical_and,
        "Or": torch.logical_or,
        "Xor": torch.logical_xor,
    }
)
for _name, _pair in BINARY.items():
    _register_binary(_name, _pair)


@operator("Mul", since=7)
def multiply(a: Tensor, b: Tensor) -> Tensor:
    return raise_to(a, 2) if a is b else a * b


@operator("Div", since=7)
def div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow", since=7)
def power(a: Tensor, b: Tensor) -> Tensor:
    return raise_to(a, b).to(a.dtype)


def raise_to(x: Tensor, exponent: Tensor | float) -> Tensor:
    """A power whose gradient at 0 is 0 where the exponent is above 1, even behind an infinite one.

    A norm written as a root of a sum of powers so has the gradient at 0 that PyTorch's norms have, not NaN.
    """
    if not x.is_floating_point():
        return torch.pow(x, exponent)
    flat = (x == 0) & (torch.as_tensor(exponent, dtype=x.dtype, device=x.device) > 1)
    return torch.pow(torch.where(flat, 0.0, x), exponent)


@operator("Mod", since=10)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Min")
def minimum(*xs: Tensor) -> Tensor:
    return reduce(torch.minimum, xs)


@operator("Max")
def maximum(*xs: Tensor) -> Tensor:
    return reduce(torch.maximum, xs)


@operator("Sum")
def total(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs)


@operator("Mean")
def mean(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs) / len(xs)


@operator("Where", since=9)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    wanted = (x > 0) & bool(detect_positive) | (x < 0) & bool(detect_negative)
    return torch.isinf(x) & wanted
