"""The limit of a process's memory, and errors of exhausted memory, which nearly every library reports in its
own words.
"""

from __future__ import annotations

import os
import re
import resource
from contextlib import suppress
from pathlib import Path
from typing import Literal

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


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


Limit = Literal["cgroup", "data", "none"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = "touchstone-"


def limit_memory(limit: int, *, device: str = "cpu") -> Limit:
    """Limit the memory of this process to so many bytes, and say by which means.

    On a CPU an allocation beyond the limit fails, as an error that `is_out_of_memory` recognizes ("data":
    RLIMIT_DATA). Where a cgroup can be made for this process alone, the kernel enforces the same limit for
    whatever that does not count, and ends this process before any other ("cgroup"). CUDA maps memory of its
    own, so RLIMIT_DATA is left alone there ("none" without a cgroup).
    """
    if device == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    if _join_own_cgroup(limit):
        return "cgroup"
    return "data" if device == "cpu" else "none"


def _join_own_cgroup(limit: int) -> bool:
    """Move this process to a cgroup (v2) of its own with this limit; whether that was possible."""
    try:
        parent = _CGROUPS / _find_cgroup().lstrip("/")
        if parent.name.startswith(_OWN_GROUP):  # that of the process which started this one
            parent = parent.parent
        _remove_empty_groups(parent)
        own = parent / f"{_OWN_GROUP}{os.getpid()}"
        own.mkdir(exist_ok=True)
    except OSError:
        return False
    try:
        (own / "memory.max").write_text(str(limit))
        (own / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            own.rmdir()
        return False
    return True


def _find_cgroup() -> str:
    """The path of this process's cgroup. Raises OSError where there is none of version 2."""
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    raise FileNotFoundError("no cgroup of version 2")


def _remove_empty_groups(parent: Path) -> None:
    """Remove the groups of processes that have ended; one with a process cannot be removed."""
    for group in parent.glob(f"{_OWN_GROUP}*"):
        with suppress(OSError):
            group.rmdir()
