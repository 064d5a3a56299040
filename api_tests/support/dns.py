"""A fake resolver of host names."""

from __future__ import annotations

import socket
from typing import Any

PUBLIC_ADDRESS = "93.184.216.34"


def fake_resolver(*answers: str | list[str]) -> Any:
    """A resolver that gives one answer after the other, and then repeats the last."""
    left = list(answers)

    def find(_host: str, port: int) -> list[tuple[int, Any, str]]:
        texts = left.pop(0) if len(left) > 1 else left[0]
        each = [texts] if isinstance(texts, str) else texts
        return [(socket.AF_INET6 if ":" in text else socket.AF_INET, (text, port), text) for text in each]

    return find
