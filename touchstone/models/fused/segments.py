"""Stages run by oneDNN where nothing can overflow, else by PyTorch's layers.

oneDNN's fused clamp turns NaN into 0, so that an overflow would end in finite logits. With constant weights
the largest input bounds every sum, so that a look at the input tells whether an infinity or NaN can arise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.models.fused import onednn
from touchstone.models.fused.stages import Stage

LIMIT = 1e9
"""Largest L2 norm of the features that enter a segment which oneDNN may run; it bounds each of them, and is
the quickest to compute.
"""

MAX_SUM = 1e37
"""Largest bound of a sum within a segment: float32 ends at 3.4e38."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive stages; `bounded` tells that inputs up to `LIMIT` cannot make them overflow."""

    stages: tuple[Stage, ...]
    packed: tuple[onednn.PackedStage, ...]
    bounded: bool

    def run(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to features; NaN and infinity have the effect that they have in PyTorch."""
        if self.bounded and float(torch.linalg.vector_norm(x.detach())) <= LIMIT:
            return onednn.run_stages(x, self.packed)
        fits = torch.linalg.vector_norm(x.detach().flatten(1), dim=1) <= LIMIT
        if not self.bounded or not bool(fits.any()):
            return run_layers(x, self.stages)
        fast = onednn.run_stages(_select_rows(x, fits), self.packed)
        exact = run_layers(_select_rows(x, ~fits), self.stages)
        places = torch.cat([fits.nonzero(), fits.logical_not().nonzero()]).flatten().argsort()
        return torch.cat([fast, exact])[places].contiguous(memory_format=torch.channels_last)


def run_layers(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """Features to features by PyTorch's layers."""
    for stage in stages:
        x = stage(x)
    return x


def pack(stages: Sequence[Stage], input_shape: onednn.Shape) -> tuple[Segment, ...]:
    """Consecutive stages as segments, packed for inputs of one size."""
    segments = []
    for some, bounded in _split(stages):
        packed = onednn.pack(some, input_shape)
        segments.append(Segment(tuple(some), packed, bounded))
        input_shape = packed[-1].convs[-1].output_shape
    return tuple(segments)


def _split(stages: Sequence[Stage]) -> Iterator[tuple[list[Stage], bool]]:
    """Runs of stages, each as long as it stays bounded, and whether it is."""
    run: list[Stage] = []
    bound = LIMIT
    for stage in stages:
        peak, following = _bound(stage, bound)
        if run and not peak <= MAX_SUM:
            yield run, True
            run = []
            peak, following = _bound(stage, LIMIT)
        if peak <= MAX_SUM:
            run, bound = [*run, stage], following
        else:
            yield [stage], False
            bound = LIMIT
    if run:
        yield run, True


def _bound(stage: Stage, largest: float) -> tuple[float, float]:
    """Bounds of all sums within a stage, and of its output, for inputs up to `largest`."""
    sums, bound = [largest], largest
    for conv in stage:
        weights = conv.weight.abs().flatten(1).sum(1, dtype=torch.float64)
        sums.append(float((weights * bound + conv.bias.abs()).max()))
        bound = sums[-1] if conv.ceiling is None else min(sums[-1], conv.ceiling)
    if stage.skip:
        bound += largest
    sums.append(bound)
    return float(torch.tensor(sums, dtype=torch.float64).max()), bound  # unlike `max`, it keeps NaN


def _select_rows(x: Tensor, which: Tensor) -> Tensor:
    return x[which].contiguous(memory_format=torch.channels_last)
