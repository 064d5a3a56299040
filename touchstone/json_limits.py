"""How much a JSON text may hold, counted in its bytes before it is parsed: a few megabytes of brackets become
hundreds of megabytes of objects, and while they are made no other thread runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 64

_QUOTE, _COMMA = ord('"'), ord(",")
_OPENING, _CLOSING = ord("["), ord("]")
_BRACE_BIT = 0x20
"""By which braces differ from brackets."""


class JsonLimitError(ValueError):
    """The text holds more than is allowed; the message says what."""


@dataclass(frozen=True)
class JsonLimits:
    """The most lists and objects, and the most values, of a text."""

    containers: int
    values: int

    def check(self, text: bytes) -> None:
        """Raise `JsonLimitError` where a text holds more, or is nested deeper than `MAX_DEPTH`. Whether it is
        JSON at all is not checked.
        """
        containers = text.count(b"[") + text.count(b"{")
        if containers <= min(MAX_DEPTH, self.containers) and containers + text.count(b",") <= self.values:
            return
        self._check_exactly(np.frombuffer(_hide_escapes(text), np.uint8))

    def _check_exactly(self, text: NDArray[np.uint8]) -> None:
        outside = ~_find_strings(text)
        brackets = text & ~np.uint8(_BRACE_BIT)
        opened, closed = (brackets == _OPENING) & outside, (brackets == _CLOSING) & outside
        containers = int(np.count_nonzero(opened))
        values = containers + int(np.count_nonzero((text == _COMMA) & outside))
        if containers > self.containers:
            raise JsonLimitError(f"{containers:,} lists and objects; at most {self.containers:,} are allowed")
        if values > self.values:
            raise JsonLimitError(f"{values:,} values; at most {self.values:,} are allowed")
        if containers > MAX_DEPTH and _depth(opened, closed) > MAX_DEPTH:
            raise JsonLimitError(f"it is nested too deeply; at most {MAX_DEPTH} levels are allowed")


def _hide_escapes(text: bytes) -> bytes:
    """The text without backslashes, and without quotes that do not end a string."""
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text


def _find_strings(text: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes lie in a string: an odd number of quotes has come before. Sums of bytes may overflow."""
    quotes: NDArray[np.uint8] = np.cumsum(text == _QUOTE, dtype=np.uint8)
    return (quotes & np.uint8(1)).astype(np.bool_)


def _depth(opened: NDArray[np.bool_], closed: NDArray[np.bool_]) -> int:
    """The deepest level."""
    at = np.flatnonzero(opened | closed)
    return int(np.cumsum(np.where(opened[at], 1, -1)).max(initial=0))
