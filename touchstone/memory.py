"""Whether it was memory that there was not enough of: nearly everybody says that in words of their own."""

from __future__ import annotations

import re

_PATTERN = re.compile(
    "MemoryError"  # Python's; torch's for CUDA
    "|allocate memory"  # torch's allocator on the CPU; errno 12
    "|out of memory"  # CUDA, zlib
    "|bad_alloc"  # C++
    "|could not create a primitive(?! desc)"  # oneDNN, whose code needs it; descriptors fail otherwise
    "|can't start new thread"  # for want of a stack
)


def mentions_out_of_memory(text: str) -> bool:
    """Whether an error's text, or what a process wrote as it ended, means that there was no memory left."""
    return _PATTERN.search(text) is not None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, means that device or host had no memory left."""
    while error is not None:
        if mentions_out_of_memory(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False
