"""Waiting for what must come, as long as it takes on a machine that has other things to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Seen")

TIMEOUT_SECONDS = 60.0
"""In which whatever works comes, and which nothing that a test waits for in vain outlasts."""


def wait_until(condition: Callable[[], Result], seconds: float = TIMEOUT_SECONDS) -> Result:
    """What it sees, once it sees something."""
    end = time.monotonic() + seconds
    while not (seen := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return seen
