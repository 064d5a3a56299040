"""Digests that identify bytes."""

from __future__ import annotations

import hashlib


def digest_of(data: bytes) -> str:
    """The SHA-256 digest that names these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
