"""Times on a device, within a time box."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], Any]


class OutOfTime(BaseException):
    """The time box of a block has passed."""


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the body once these have passed; in the main thread alone, where signals arrive."""

    def stop(_signal: int, _frame: Any) -> None:
        raise OutOfTime

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Clock:
    """Seconds that runs take on a device."""

    device: torch.device

    def measure(self, run: Run) -> float:
        """Seconds of one run, from an idle device until it is idle again."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        with torch.cuda.device(self.device):
            begin.record()
            run()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def interleave(self, runs: Mapping[str, Run], rounds: int = 3) -> dict[str, float]:
        """Median seconds of each run; the runs take turns, each once before to warm up."""
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                seconds[name].append(self.measure(run))
        return {name: statistics.median(times) for name, times in seconds.items()}

    def peak_bytes(self, run: Run) -> int | None:
        """The most memory that a run has allocated on the device at once; None where that is not counted."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)
