"""Opaque places in a list: a sequence number, signed together with the list it belongs to."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from touchstone.errors import InvalidCursor

_TAG = 12
_PLACE = 8


def _tag(secret: bytes, place: bytes, indexes: Sequence[str]) -> bytes:
    text = place + "\0".join(indexes).encode()
    return hmac.digest(secret, text, hashlib.sha256)[:_TAG]


def write(place: int, indexes: Sequence[str], secret: bytes) -> str:
    """A cursor that continues the list of these indexes below `place`."""
    raw = place.to_bytes(_PLACE, "big")
    return base64.urlsafe_b64encode(raw + _tag(secret, raw, indexes)).decode().rstrip("=")


def read(cursor: str, indexes: Sequence[str], secret: bytes) -> int:
    """The place that the cursor stands for; `InvalidCursor` where it was not written for this list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    place, tag = raw[:_PLACE], raw[_PLACE:]
    if len(place) != _PLACE or not hmac.compare_digest(tag, _tag(secret, place, indexes)):
        raise InvalidCursor(
            "cursor: not one that this list gave out; start again without a cursor", field="cursor"
        )
    return int.from_bytes(place, "big")
