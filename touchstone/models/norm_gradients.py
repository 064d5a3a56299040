"""Batch and instance norms of PyTorch, whose gradient is wrong in some layouts in memory.

With one image the stride of the batch says nothing, and the backward passes of PyTorch 2.13 on the CPU
misread the layout of image or gradient where that stride is unusual, as with pixels first.
An instance norm is computed as the batch norm of one image, however many there are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


def correct_norm_gradients(net: nn.Module) -> nn.Module:
    """The same network, whose norms see such images and their gradients in the default layout only."""
    for module in net.modules():
        if isinstance(module, _BatchNorm | _InstanceNorm):
            module.register_forward_pre_hook(_lay_out_input)
            module.register_forward_hook(_lay_out_gradient)
    return net


def _is_ambiguous(module: nn.Module, x: Tensor) -> bool:
    return len(x) == 1 or isinstance(module, _InstanceNorm)


def _lay_out_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = inputs
    return (x.contiguous() if _is_ambiguous(module, x) else x, *rest)


def _lay_out_gradient(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
    if y.requires_grad and _is_ambiguous(module, inputs[0]):
        y.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
