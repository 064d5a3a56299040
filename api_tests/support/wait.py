"""Waiting for what must come, as long as it takes on a machine that has other things to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")

SECONDS = 60.0
"""In which whatever works comes, and which nothing that a test waits for in vain outlasts."""


def wait_until(look: Callable[[], Seen], seconds: float = SECONDS) -> Seen:
    """What it sees, once it sees something."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return seen
