"""The peak of the memory that tensors take on the host, as PyTorch's allocator counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import autograd
from torch.profiler import ProfilerActivity


@dataclass
class Peak:
    """Bytes of tensors above what there was before, once the block has ended."""

    bytes: int = 0


@contextmanager
def track_peak() -> Iterator[Peak]:
    """Track the peak of a block."""
    peak = Peak()
    config = autograd.ProfilerConfig(  # of the profiler itself, whose reports in Python would take seconds
        *(autograd.ProfilerState.KINETO, False, True, False, False, False),
        torch._C._profiler._ExperimentalConfig(),
    )
    autograd._prepare_profiler(config, {ProfilerActivity.CPU})
    autograd._enable_profiler(config, {ProfilerActivity.CPU})
    try:
        yield peak
    finally:
        result = autograd._disable_profiler()
    peak.bytes = _highest(result.events())


def _highest(events: object) -> int:
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")  # type: ignore[attr-defined]
    held = highest = 0
    for _, size in changes:
        held += size
        highest = max(highest, held)
    return highest
