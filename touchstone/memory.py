"""Recognizes errors of exhausted memory: nearly every library reports them in its own words."""

from __future__ import annotations

import re

_PATTERN = re.compile(
    "MemoryError"  # Python's; torch's for CUDA
    "|allocate memory"  # torch's allocator on the CPU; errno 12
    "|out of memory"  # CUDA, zlib
    "|bad_alloc"  # C++
    "|could not create a primitive(?! desc)"  # oneDNN, for generated code; descriptors fail for other reasons
    "|can't start new thread"  # no memory for its stack
)


def mentions_out_of_memory(text: str) -> bool:
    """Whether an error's text, or the last output of a process, means that memory was exhausted."""
    return _PATTERN.search(text) is not None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that memory of the device or the host was exhausted."""
    while error is not None:
        if mentions_out_of_memory(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False
