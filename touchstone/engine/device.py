"""Which device to use, and how to prepare the process for it."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache

import torch
from torch import Tensor

from touchstone.engine.pieces import PIECE_BYTES

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" takes CUDA where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def tune_allocator() -> None:
    """Tell the allocator, once a process, to keep large blocks: giving them back after each step costs a
    third of a forward pass.

    One arena serves all threads, since only the main one can hold blocks of any size: call this before other
    threads allocate.
    """
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the host on a device; to CUDA through pinned memory, without waiting for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pass_bytes(device: torch.device) -> int:
    """Bytes of the images of a pass at most, as far as one row allows: a GPU needs many to be busy."""
    return PIECE_BYTES if device.type == "cpu" else 2**30


def max_rows(device: torch.device) -> int:
    """The largest batch to try: few rows keep a CPU busy, a GPU may need many."""
    return 64 if device.type == "cpu" else 1024
