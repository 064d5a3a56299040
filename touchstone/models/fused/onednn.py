"""Frozen convolutions by oneDNN directly: clamps fused, weights packed once, gradients by convolution.

PyTorch's layers pass 1x1 convolutions of small batches to a slower library and clamp in a second pass over
memory. With constant weights the gradient of a convolution with respect to its input is itself a convolution,
with the rotated kernel; so forward and backward passes are each one chain of fused calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from touchstone.models.fused.stages import FrozenConv, Stage

Shape = tuple[int, int, int]
"""Channels, height and width."""


def is_supported(x: Tensor) -> bool:
    """Whether this module can compute such features."""
    enabled = torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    suitable = x.device.type == "cpu" and x.dtype == torch.float32 and len(x) > 0
    return bool(suitable and enabled and hasattr(torch.ops.mkldnn, "_convolution_pointwise"))


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A frozen convolution, packed for inputs of one size."""

    conv: FrozenConv
    input_shape: Shape
    weight: Tensor  # in oneDNN's own layout, as is `gradient_weight`
    gradient_weight: Tensor | None
    """The kernel of the gradient; None where a stride makes it a transposed convolution."""

    @classmethod
    def of(cls, conv: FrozenConv, input_shape: Shape) -> PackedConv:
        """Pack the weights of a convolution."""
        weight = _pack_weight(conv.weight, conv, conv.padding, input_shape)
        forward_only = cls(conv, input_shape, weight, None)
        if conv.stride > 1:
            return forward_only
        gradient_weight = _pack_weight(
            _transpose_kernel(conv), conv, _gradient_padding(conv), forward_only.output_shape
        )
        return cls(conv, input_shape, weight, gradient_weight)

    @property
    def output_shape(self) -> Shape:
        """The size of the output."""
        height, width = (
            (side + 2 * self.conv.padding - self.conv.weight.shape[-1]) // self.conv.stride + 1
            for side in self.input_shape[1:]
        )
        return len(self.conv.bias), height, width

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        conv = self.conv
        return _convolve(
            x,
            self.weight,
            conv.bias,
            padding=conv.padding,
            stride=conv.stride,
            groups=conv.groups,
            ceiling=conv.ceiling,
        )

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient with respect to the input, from that with respect to the output before the clamp."""
        conv = self.conv
        if self.input_shape[0] == 1:
            return self._backward_one_channel(grad)
        if self.gradient_weight is not None:
            return _convolve(
                grad, self.gradient_weight, None, padding=_gradient_padding(conv), groups=conv.groups
            )
        covered = [
            (side - 1) * conv.stride - 2 * conv.padding + conv.weight.shape[-1]
            for side in self.output_shape[1:]
        ]
        rest = [side - last for side, last in zip(self.input_shape[1:], covered, strict=True)]
        return functional.conv_transpose2d(
            grad, conv.weight, None, conv.stride, conv.padding, rest, conv.groups
        )

    def _backward_one_channel(self, grad: Tensor) -> Tensor:
        """The same for images of one channel, which use a vectorized convolution badly: the gradient of each
        kernel tap by a matrix product, then the sum over overlapping windows.
        """
        conv, k = self.conv, self.conv.weight.shape[-1]
        pixels = grad.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H'·W', O)
        taps = conv.weight.view(-1, k * k).T @ pixels.transpose(1, 2)  # (B, k², H'·W')
        return functional.fold(taps, self.input_shape[1:], k, padding=conv.padding, stride=conv.stride)


@dataclass(frozen=True, eq=False)
class PackedStage:
    """A stage, packed for inputs of one size."""

    convs: tuple[PackedConv, ...]
    skip: bool

    @classmethod
    def of(cls, stage: Stage, input_shape: Shape) -> PackedStage:
        """Pack the weights of a stage."""
        convs = []
        for conv in stage:
            convs.append(PackedConv.of(conv, input_shape))
            input_shape = convs[-1].output_shape
        return cls(tuple(convs), stage.skip)

    def forward(self, x: Tensor, clamped: list[Tensor] | None) -> Tensor:
        """Features to features; clamped features are appended to `clamped`, for the backward pass."""
        y = x
        for one in self.convs:
            y = one.forward(y)
            if clamped is not None and one.conv.ceiling is not None:
                clamped.append(y)
        return y.add_(x) if self.skip else y

    def backward(self, grad: Tensor, clamped: list[Tensor]) -> Tensor:
        """The gradient with respect to the stage's input; pops the stage's features from the end of
        `clamped`.
        """
        g = grad
        for one in reversed(self.convs):
            if one.conv.ceiling is not None:
                g = _clamp_backward(g, clamped.pop(), one.conv.ceiling, out=None if g is grad else g)
            g = one.backward(g)
        return g.add_(grad) if self.skip else g


def pack(stages: Sequence[Stage], input_shape: Shape) -> tuple[PackedStage, ...]:
    """Pack the weights of consecutive stages, the first of which takes inputs of the size `input_shape`."""
    packed = []
    for stage in stages:
        packed.append(PackedStage.of(stage, input_shape))
        input_shape = packed[-1].convs[-1].output_shape
    return tuple(packed)


def run_stages(x: Tensor, stages: Sequence[PackedStage]) -> Tensor:
    """Features (B, C, H, W) through the stages; differentiable once, with respect to `x`."""
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _RunStages.apply(x, stages)  # type: ignore[no-untyped-call]
        return result
    for stage in stages:
        x = stage.forward(x, None)
    return x


class _RunStages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stages: Sequence[PackedStage]) -> Tensor:
        clamped: list[Tensor] = []
        for stage in stages:
            x = stage.forward(x, clamped)
        ctx.save_for_backward(*clamped)
        ctx.stages = stages
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        clamped = list(ctx.saved_tensors)
        grad = grad.contiguous(memory_format=torch.channels_last)
        for stage in reversed(ctx.stages):
            grad = stage.backward(grad, clamped)
        return grad, None


def _transpose_kernel(conv: FrozenConv) -> Tensor:
    """The kernel with inputs and outputs exchanged within each group, and every filter rotated by 180°."""
    outputs, inputs, k, _ = conv.weight.shape
    grouped = conv.weight.reshape(conv.groups, outputs // conv.groups, inputs, k, k).transpose(1, 2)
    return grouped.reshape(conv.groups * inputs, outputs // conv.groups, k, k).flip(2, 3)


def _gradient_padding(conv: FrozenConv) -> int:
    return conv.weight.shape[-1] - 1 - conv.padding


def _pack_weight(weight: Tensor, conv: FrozenConv, padding: int, input_shape: Shape) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(memory_format=torch.channels_last),
        *([padding] * 2, [conv.stride] * 2, [1, 1], conv.groups),
        [1, *input_shape],
    )
    return packed


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: int,
    groups: int,
    stride: int = 1,
    ceiling: float | None = None,
) -> Tensor:
    clamp = ("none", []) if ceiling is None else ("hardtanh", [0.0, ceiling])
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, *clamp, ""
    )
    return y


def _clamp_backward(grad: Tensor, clamped: Tensor, ceiling: float, *, out: Tensor | None) -> Tensor:
    """The gradient before a clamp; written to `out`, which may be `grad`, if it is given."""
    if out is None:
        before: Tensor = torch.ops.aten.hardtanh_backward(grad, clamped, 0.0, ceiling)
    else:
        before = torch.ops.aten.hardtanh_backward.grad_input(grad, clamped, 0.0, ceiling, grad_input=out)
    return before
