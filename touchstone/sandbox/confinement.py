"""What a process that handles strangers' bytes is left with: none of our environment, and bounds for good."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

MAX_FILES = 64


def environment() -> dict[str, str]:
    """What such a process is started with: nothing of our own but the way to the same version of us."""
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2])}


def confine(*, memory: int, max_file_bytes: int, processor_seconds: int | None = None) -> None:
    """Take from this process what it does not need: it may have `memory` bytes more than now, and write
    `max_file_bytes` bytes to any file.
    """
    most = {
        resource.RLIMIT_AS: _address_space() + memory,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_FSIZE: max_file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    if processor_seconds is not None:
        most[resource.RLIMIT_CPU] = processor_seconds
    for kind, limit in most.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (limit, limit))
    with suppress(OSError):  # where memory runs out, the system is to choose this process
        Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
