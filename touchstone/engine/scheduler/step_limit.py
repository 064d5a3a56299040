"""How long the work of a plan between two passes may take on this machine."""

from __future__ import annotations

import time

import torch
from threadpoolctl import ThreadpoolController

from touchstone.errors import TimeExceeded

REFERENCE_SECONDS = 0.016
"""Processor time of the trial below on the machine that the default limit was chosen on, with some room: it
took 0.011 to 0.013 s on a core of an AMD EPYC, busy or not.
"""

TRIES, TRIAL_VALUES = 3, 2**17


def measure_slowness() -> float:
    """How many times as long as the reference this machine takes for a small trial, at least 1.

    It is measured in processor time of this thread, which computes alone, so that other processes hardly
    change it: threads that wait for one another would spin.
    """
    with ThreadpoolController().limit(limits=1, user_api="openmp"):
        return max(1.0, min(_time_trial() for _ in range(TRIES)) / REFERENCE_SECONDS)


def _time_trial() -> float:
    """Processor time of what plans do most: to sort, and to go through images."""
    values = torch.arange(TRIAL_VALUES, dtype=torch.float64).mul_(0.618).frac_()
    began = time.thread_time()
    values.sort()
    for _ in range(20):
        values = (values * 0.5).add_(0.25).clamp_(0, 1)
    return time.thread_time() - began


def time_exceeded(step: int, seconds: float, limit: float) -> TimeExceeded:
    """The end of a job whose own work took longer than the limit."""
    return TimeExceeded(
        f"step {step} of the job computed for {seconds:.1f} s between two passes of the model, and at most "
        f"{limit:.1f} s are allowed on this machine, since other jobs wait meanwhile: use a smaller image",
        step=step,
        seconds=round(seconds, 3),
        limit=round(limit, 3),
    )
