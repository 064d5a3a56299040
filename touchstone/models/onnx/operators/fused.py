"""Operators that no file contains: `fusion` replaces several others by them, and `control_flow` loops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.fused.trunk import Trunk
from touchstone.models.onnx.registry import operator, register_elementwise

register_elementwise("fused.Silu", functional.silu)
register_elementwise("fused.Gelu", functional.gelu)


@operator("fused.LayerNorm")
def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    return functional.layer_norm(x, scale.shape, scale, bias, epsilon)


@operator("fused.Stack")
def stack(*xs: Tensor) -> Tensor:
    return torch.stack(xs)


@operator("fused.Linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(x, weight, bias)


@operator("fused.Clamp")
def clamp(x: Tensor, *, ceiling: float) -> Tensor:
    return functional.hardtanh(x, 0.0, ceiling, inplace=True)


@operator("fused.Trunk")
def trunk(x: Tensor, *, module: Trunk) -> Tensor:
    if not x.is_meta:
        y: Tensor = module(x)
        return y
    for stage in module:  # on the meta device only shapes are needed
        for conv in stage:
            weight = conv.weight.to(x.device)
            x = functional.conv2d(x, weight, None, conv.stride, conv.padding, 1, conv.groups)
    return x
