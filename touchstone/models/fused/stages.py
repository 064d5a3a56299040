"""Stages of frozen convolutions: BatchNorm folded into the weights, the activation fused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

RELU = math.inf
RELU6 = 6.0


class FrozenConv(nn.Module):
    """A square convolution followed by a clamp to [0, `ceiling`], or by nothing without a ceiling."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,  # (O, I / groups, k, k)
        bias: Tensor,  # (O,)
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        ceiling: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach())
        self.stride, self.padding, self.groups, self.ceiling = stride, padding, groups, ceiling

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, I, H, W) to features (B, O, H', W')."""
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y if self.ceiling is None else functional.hardtanh(y, 0.0, self.ceiling, inplace=True)


class Stage(nn.Module):
    """Convolutions in a row; with `skip` their input is added to their output, so the last has no ceiling."""

    def __init__(self, *convs: FrozenConv, skip: bool = False) -> None:
        super().__init__()
        if skip and convs[-1].ceiling is not None:
            raise ValueError("skip: the last convolution of the stage has an activation")
        self.convs = nn.ModuleList(convs)
        self.skip = skip

    def __iter__(self) -> Iterator[FrozenConv]:
        return iter(self.convs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Features to features, by PyTorch's layers and autograd."""
        y = x
        for conv in self:
            y = conv(y)
        return y + x if self.skip else y


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution equal to `conv` followed by `norm` in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics depends on the batch and cannot be folded")
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    bias = 0.0 if conv.bias is None else conv.bias.detach()
    return conv.weight.detach() * scale.view(-1, 1, 1, 1), norm.bias.detach() + (
        bias - norm.running_mean
    ) * scale
