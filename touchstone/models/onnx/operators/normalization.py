"""Normalization, by the statistics of training or of each image, and of constants by their own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.errors import InvalidModel
from touchstone.models.onnx.graph import Node, list_nodes
from touchstone.models.onnx.operators.arithmetic import raise_to
from touchstone.models.onnx.registry import operator

TRAINING_MODE = "the network was exported in training mode: call eval() before the export"


@operator("BatchNormalization", since=9)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    outputs: int = 1,
) -> Tensor:
    if outputs > 1:
        raise ValueError(TRAINING_MODE)
    return _normalize_channels(x, mean, var, scale, bias, epsilon)


@operator("BatchNormalization", since=14)
def batch_normalization_by_mode(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, ...]:
    if not training_mode:
        return _normalize_channels(x, mean, var, scale, bias, epsilon)
    dims = [0, *range(2, x.ndim)]
    own = x.mean(dims), x.var(dims, correction=0)
    y = _normalize_channels(x, *own, scale, bias, epsilon)
    return y, *(torch.lerp(new, old, momentum) for old, new in zip((mean, var), own, strict=True))


def _normalize_channels(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """Equal to PyTorch's batch norm, whose gradient is wrong for one image where strides are unusual."""
    factor = scale * torch.rsqrt(var + epsilon)
    sides = [1, -1] + [1] * (x.ndim - 2)
    return torch.addcmul((bias - mean * factor).view(sides), x, factor.view(sides))


def check_eval_mode(nodes: Iterable[Node]) -> None:
    """Raise InvalidModel where something other than a constant is normalized by its own batch.

    Constants are: networks with standardized weights compute these so.
    """
    for node in list_nodes(nodes):
        if node.kind == "BatchNormalization" and node.attributes.get("training_mode"):
            raise InvalidModel(f"the {node} cannot be computed: {TRAINING_MODE}")


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    # PyTorch's own is wrong in its gradient for one image where channels are last in memory.
    return functional.group_norm(x, x.shape[1], scale, bias, epsilon)


@operator("GroupNormalization", since=18)
def group_normalization_per_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    each = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization", since=17)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    axis %= x.ndim
    if scale.shape == x.shape[axis:] and outputs == 1 and (bias is None or bias.shape == scale.shape):
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)
    dims = tuple(range(axis, x.ndim))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = (centred.square().mean(dims, keepdim=True) + epsilon).rsqrt()
    y = centred * inverse * scale
    return (y if bias is None else y + bias, mean, inverse)[:outputs]


@operator("RMSNormalization", since=23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    dims = tuple(range(axis % x.ndim, x.ndim))
    return x * (x.square().mean(dims, keepdim=True) + epsilon).rsqrt() * scale


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    before = (size - 1) // 2
    squares = functional.pad(x.square().flatten(2), (0, 0, before, size - 1 - before))
    sums = squares.unfold(1, size, 1).sum(-1).view_as(x)
    return x / (bias + alpha / size * sums) ** beta


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = x.norm(p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    if 0 in [axis % x.ndim for axis in axes] and x.shape[0] > 1:
        raise ValueError("it normalizes over the batch: the answer for an image would depend on the others")
    centred = x - x.mean(axes, keepdim=True)
    return centred / (raise_to(centred, 2).mean(axes, keepdim=True).sqrt() + 1e-9)
