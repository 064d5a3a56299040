"""What installed packages publish with an architecture, read in a process of its own: they import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

from touchstone.errors import InvalidParameter
from touchstone.registration.published.facts import Facts
from touchstone.sandbox import confinement

MODULE = "touchstone.registration.published.packages_process"
SECONDS = 120


def read_packaged(architecture: str) -> Facts:
    """The preprocessing, and classes where known, of `torchvision/NAME` or `timm/NAME`.

    Raises InvalidParameter where there is none.
    """
    try:
        answer = _ask(architecture)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        answer = {"error": f"the process that reads it failed ({type(error).__name__})"}
    if "error" in answer:
        raise InvalidParameter(
            f"architecture: what is published for {architecture[:80]} cannot be read: {answer['error']}. "
            "State input, classes, mean and std"[:500],
            field="architecture",
        )
    return Facts(answer["source"], answer["values"])


@lru_cache(maxsize=256)
def _ask(architecture: str) -> dict[str, Any]:
    """What the process answers; raises where it fails, so that the next request asks again."""
    ended = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", MODULE, architecture],
        capture_output=True,
        timeout=SECONDS,
        check=True,
        cwd="/",
        env=confinement.environment(),
    )
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer
