"""Stages of frozen convolutions as one module, by the fastest available implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from touchstone.models.fused import onednn, segments
from touchstone.models.fused.stages import Stage


class Trunk(nn.Module):
    """Consecutive stages: by oneDNN where it is supported, else by PyTorch's layers."""

    def __init__(self, *stages: Stage) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._packed: dict[onednn.Shape, tuple[segments.Segment, ...]] = {}

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to features (B, C', H', W')."""
        x = x.contiguous(memory_format=torch.channels_last)
        if not onednn.is_supported(x):
            return segments.run_layers(x, list(self))
        for segment in self._pack(x):
            x = segment.run(x)
        return x

    def _pack(self, x: Tensor) -> tuple[segments.Segment, ...]:
        _, channels, height, width = x.shape
        size = (channels, height, width)
        if size not in self._packed:
            self._packed[size] = segments.pack(list(self), size)
        return self._packed[size]

    def _apply(self, *args: Any, **kwargs: Any) -> Trunk:
        self._packed = {}  # the weights are about to move or change their type
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # packed weights can be neither copied nor pickled
