"""Activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.registry import Known, operator, register_elementwise

for _name, _function in {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softsign": functional.softsign,
    "Mish": functional.mish,
    "HardSwish": functional.hardswish,
}.items():
    register_elementwise(_name, _function)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    if x.ndim > 2 and slope.ndim == x.ndim - 1 and slope.numel() == len(slope) == x.shape[1]:
        return functional.prelu(x, slope.flatten())
    return torch.where(x > 0, x, x * slope)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * functional.elu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return functional.hardsigmoid(x)
    return functional.hardtanh(alpha * x + beta, 0.0, 1.0)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.threshold(x, alpha, 0.0)


@operator("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    outer = torch.where(x < -lambd, x + bias, x - bias)
    return torch.where(x.abs() > lambd, outer, 0).to(x.dtype)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("Clip")
def clip_between(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:
    return _clip(x, min, max)


@operator("Clip", since=11)
def clip(x: Tensor, low: Known | None = None, high: Known | None = None) -> Tensor:
    return _clip(x, None if low is None else low.item(), None if high is None else high.item())


def _clip(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """At a bound the gradient of ReLU6 is 0, and that of any other clip 1, as PyTorch's `clamp` has it.

    So a network that clips its input to [0,1] has a gradient at black and at white pixels.
    """
    if (low, high) == (0, 6) and x.is_floating_point():
        return functional.relu6(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("Softmax", since=1)
def softmax_of_rest(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.softmax(_rest(x, axis), -1).view(x.shape)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=1)
def log_softmax_of_rest(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.log_softmax(_rest(x, axis), -1).view(x.shape)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _rest(x: Tensor, axis: int) -> Tensor:
    """All dimensions from this axis on as one."""
    return x.flatten(axis) if axis % x.ndim < x.ndim - 1 else x
