"""Webhooks by the Standard Webhooks specification: secrets, signatures, and delays between attempts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import random
import secrets
from collections.abc import Iterable

from touchstone.errors import InvalidParameter

PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)

_MINUTE, _HOUR = 60, 3600
RETRY_DELAYS = (5, 5 * _MINUTE, 30 * _MINUTE, *(hours * _HOUR for hours in (2, 5, 10, 14, 20, 24)))
"""Seconds before each attempt but the first, which comes at once."""
_JITTER = 0.1
_MAX_DELAY = 24 * _HOUR


def new_secret() -> str:
    """A secret in the form that receivers get."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """Raise `InvalidParameter` unless a secret is `whsec_` and base64 of 24 to 64 bytes."""
    try:
        key = _decode_secret(secret) if secret.startswith(PREFIX) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in _SECRET_BYTES:
        raise InvalidParameter(
            "secret: expected whsec_ and base64 of 24 to 64 bytes; left out, one is made", field="secret"
        )


def _decode_secret(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


def build_headers(message: str, at: int, body: bytes, signing_secrets: Iterable[str]) -> dict[str, str]:
    """The headers of a message sent at a Unix time, signed with each valid secret."""
    signed = f"{message}.{at}.".encode() + body
    digests = [hmac.digest(_decode_secret(secret), signed, hashlib.sha256) for secret in signing_secrets]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }


def retry_delay(failures: int, retry_after: float | None = None) -> float | None:
    """Seconds until the next attempt after so many failures in a row; None where it was the last.

    At least the receiver's Retry-After, up to a day, with some jitter, so that deliveries that failed
    together are not sent again together.
    """
    if failures > len(RETRY_DELAYS):
        return None
    requested = min(retry_after or 0.0, _MAX_DELAY)
    return max(RETRY_DELAYS[failures - 1] * random.uniform(1 - _JITTER, 1 + _JITTER), requested)  # noqa: S311 - no secret
