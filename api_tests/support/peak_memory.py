"""The peak of the memory that tensors and arrays take, as their allocators count it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """Bytes above what there was before, once the block has ended."""

    tensors: int = 0
    arrays: int = 0

    @property
    def bytes(self) -> int:
        """Both together, though they may have been at different times."""
        return self.tensors + self.arrays


@contextmanager
def track_peak() -> Iterator[Peak]:
    """Track the peak of a block in which one thread allocates."""
    peak = Peak()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            yield peak
        peak.arrays = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    peak.tensors = _highest(profiler)


def _highest(profiler: profile) -> int:
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = highest = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        highest = max(highest, held)
    return highest


def peak_of(run: Callable[[], object]) -> int:
    """The peak of a call in bytes."""
    with track_peak() as peak:
        run()
    return peak.bytes
