"""Waiting for a condition, with a timeout that is long enough for a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

TIMEOUT_SECONDS = 60.0
"""How long tests wait before they fail."""


def wait_until(condition: Callable[[], Result], seconds: float = TIMEOUT_SECONDS) -> Result:
    """Wait until the condition returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not true after {seconds:g} s"
        time.sleep(0.01)
    return result


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
