"""Opaque positions in a list: a sequence number, signed together with the list it belongs to."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from touchstone.errors import InvalidCursor

_TAG_BYTES = 12
_POSITION_BYTES = 8


def _sign(secret: bytes, position: bytes, indexes: Sequence[str]) -> bytes:
    text = position + "\0".join(indexes).encode()
    return hmac.digest(secret, text, hashlib.sha256)[:_TAG_BYTES]


def encode_cursor(position: int, indexes: Sequence[str], secret: bytes) -> str:
    """A cursor that continues the list of these indexes below `position`."""
    raw = position.to_bytes(_POSITION_BYTES, "big")
    return base64.urlsafe_b64encode(raw + _sign(secret, raw, indexes)).decode().rstrip("=")


def decode_cursor(cursor: str, indexes: Sequence[str], secret: bytes) -> int:
    """The position that the cursor stands for; `InvalidCursor` where it was not written for this list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    position, tag = raw[:_POSITION_BYTES], raw[_POSITION_BYTES:]
    if len(position) != _POSITION_BYTES or not hmac.compare_digest(tag, _sign(secret, position, indexes)):
        raise InvalidCursor(
            "cursor: it was not issued for this list; start again without a cursor", field="cursor"
        )
    return int.from_bytes(position, "big")
