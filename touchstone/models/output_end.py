"""Modules behind a network that turn what it answers into logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from touchstone.models.output_activation import NORMALIZERS, ActivationStep, find_threshold


def add_output_end(net: nn.Module, steps: Sequence[ActivationStep], *, single: bool) -> nn.Module:
    """A network whose answers are logits (B, K), given what stands at its end, removed or not."""
    inverted = [step for step in steps if step.handling == "inverted"]
    ends: list[nn.Module] = [InverseActivation(inverted)] if inverted else []
    ends += [ClassPair(find_threshold(steps))] if single else []
    return nn.Sequential(net, *ends) if ends else net


class InverseActivation(nn.Module):
    """Logits from confidences (B, K), for a network whose end cannot be removed.

    A confidence that was rounded to 0 or 1 is taken for the next number, so its gradient is lost.
    """

    def __init__(self, steps: Sequence[ActivationStep]) -> None:
        super().__init__()
        self.steps = tuple(steps)

    def forward(self, y: Tensor) -> Tensor:
        """Undo the steps, the last one first."""
        for number, step in reversed(list(enumerate(self.steps))):
            nested = number > 0 and self.steps[number - 1].function in NORMALIZERS
            y = invert_step(step, y, nested=nested)
        return y


def invert_step(step: ActivationStep, y: Tensor, *, nested: bool = False) -> Tensor:
    """What a step was given, from what it gave (B, K); `nested` says that confidences were given to it."""
    if step.function == "affine":
        factor, offset = step.parameters
        return (y - (offset or 0.0)) / (factor or 1.0)
    limits = torch.finfo(y.dtype)
    if step.function == "sigmoid":
        return y.clamp(limits.tiny, 1 - limits.eps / 2).logit()
    logits = y.clamp_min(limits.tiny).log()
    # A softmax gives logits up to a constant: here the one with which they add up to one.
    return logits + (1 - logits.sum(1, keepdim=True)) / logits.shape[1] if nested else logits


def is_saturated(logits: Tensor) -> bool:
    """Whether the gradient of the largest two outputs of any row (B, K) is lost to rounding.

    So it is where an inverted confidence was 0 or 1, or where outputs in [0,1] that do not add up to one, and
    so are no logits, reach 1.
    """
    limits, top = torch.finfo(logits.dtype), logits.topk(2).values
    ends = logits.new_tensor([limits.tiny, 1 - limits.eps / 2])
    lost = torch.cat([ends.logit(), ends.log()[:1]])
    bounded = (logits.amin(1) >= 0) & (top[:, 0] <= 1) & ((logits.sum(1) - 1).abs() > limits.eps**0.5)
    return bool(torch.isin(top, lost).any() or (bounded & (top[:, 0] >= 1 - limits.eps)).any())


class ClassPair(nn.Module):
    """Logits (B, 2) of a network with one output (B, 1): 0, and by how much it exceeds the threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, z: Tensor) -> Tensor:
        """Both logits."""
        return torch.cat([torch.zeros_like(z), z - self.threshold], 1)
