"""The environment and the hard resource limits of a process that handles untrusted bytes."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

MAX_FILES = 64


def environment() -> dict[str, str]:
    """The environment variables of such a process: none of ours, but the path to the same version of this
    package.
    """
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2])}


def confine(*, memory: int, max_file_bytes: int, processor_seconds: int | None = None) -> None:
    """Limit this process for good: it may allocate `memory` bytes more than now, and write `max_file_bytes`
    bytes to any file.
    """
    limits = {
        resource.RLIMIT_AS: _address_space() + memory,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_FSIZE: max_file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    if processor_seconds is not None:
        limits[resource.RLIMIT_CPU] = processor_seconds
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)  # noqa: PLW2901
        resource.setrlimit(kind, (limit, limit))
    with suppress(OSError):  # where memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
