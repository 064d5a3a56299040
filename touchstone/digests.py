"""Digests that name bytes."""

from __future__ import annotations

import hashlib


def digest_of(data: bytes) -> str:
    """The name of these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
