"""API keys: their tenants, scopes and expiry. Of a key itself only a hash is stored.

A key has 256 random bits: it cannot be guessed, and a plain hash reveals nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import redis
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field

from touchstone.errors import (
    InvalidParameter,
    KeyExpired,
    KeyInvalid,
    LedgerUnavailable,
    StartError,
    UnknownKey,
)
from touchstone.ledger import codec
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.records import LOCAL, Record
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings, on_loopback

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

IMPLIED_SCOPES: Mapping[Scope, frozenset[Scope]] = MappingProxyType(
    {scope: frozenset(SCOPES[: index + 1]) for index, scope in enumerate(SCOPES)}
)
"""What a scope permits: itself and those before it."""

USED_AT_PRECISION_MS = 60_000
"""How exact `used_at` is; recording each use would make every request a write."""

_KEY = re.compile(r"ts_([0-9a-f]{16})_[0-9a-f]{64}")


def _check_year(moment: datetime) -> datetime:
    if moment.year > 9000:
        raise ValueError("it is too far in the future; leave it out for a key that never expires")
    return moment


class KeyRequest(Record):
    """The description of a new key."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="What the key is for, in your words.",
    )
    tenant: str = Field(
        LOCAL,
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="The tenant whose jobs and models it gives access to. No other tenant sees them.",
    )
    scope: Scope = Field(
        "submit",
        description="`read` permits reading, `submit` also starting and ending jobs, `admin` also creating "
        "and revoking the keys of all tenants.",
    )
    expires_at: Annotated[AwareDatetime, AfterValidator(_check_year)] | None = Field(
        None, description="When it expires; null: never."
    )


class Key(Record):
    """A key as it may be shown."""

    id: str
    name: str
    tenant: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None = None
    used_at: datetime | None = Field(None, description="To the minute.")


@dataclass(frozen=True)
class IssuedKey:
    """A new key, and its text, which is known at this moment only."""

    key: Key
    text: str


class ApiKeys:
    """All keys. A revoked key is invalid at once, in every process."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts

    def create(self, request: KeyRequest) -> IssuedKey:
        """Create a key; `InvalidParameter` where it would have expired already."""
        name = secrets.token_hex(8)
        text = f"ts_{name}_{secrets.token_hex(32)}"
        expires = "" if request.expires_at is None else codec.encode_time(request.expires_at)
        stored = self._scripts.run(
            "tenants/key_create", name, _hash(text), request.name, request.tenant, request.scope, expires
        )
        if not stored:
            raise InvalidParameter("expires_at: it is in the past", field="expires_at")
        return IssuedKey(_decode_key(codec.decode_pairs(stored)), text)

    def check(self, text: str) -> Key:
        """The key with this text. Raises `KeyInvalid` and `KeyExpired`."""
        match = _KEY.fullmatch(text)
        now, stored = self._read(match[1]) if match else (0, {})
        if not hmac.compare_digest(stored.get("hash", ""), _hash(text)):
            raise KeyInvalid("Authorization: there is no such API key; it was mistyped, or revoked")
        if _has_expired(stored, now):
            raise KeyExpired(f"Authorization: the API key {stored['id']} has expired; ask for a new one")
        if now - int(stored.get("used_at", 0)) > USED_AT_PRECISION_MS:
            with suppress(LedgerUnavailable):
                self._scripts.run("tenants/key_use", stored["id"])
        return _decode_key(stored)

    def is_valid(self, name: str) -> bool:
        """Whether the key of this id exists and has not expired."""
        now, stored = self._read(name)
        return bool(stored) and not _has_expired(stored, now)

    def all(self) -> list[Key]:
        """Every key, the oldest first; those that have expired are among them until they are revoked."""
        with map_redis_errors():
            names: Any = self._client.zrange("ts:access", 0, -1)
        found = [self._read(name)[1] for name in names]
        return codec.decode_each("key", _decode_key, ((one["id"], one) for one in found if one))

    def revoke(self, name: str) -> None:
        """Revoke a key; `UnknownKey` where there is none of this id."""
        if not self._scripts.run("tenants/key_revoke", name):
            raise UnknownKey(f"there is no API key {name[:40]!r}")

    def any(self) -> bool:
        """Whether any key exists."""
        with map_redis_errors():
            return bool(self._client.zcard("ts:access"))

    def _read(self, name: str) -> tuple[int, dict[str, str]]:
        now, pairs = self._scripts.run("tenants/key_look", name)
        return now, codec.decode_pairs(pairs)


def check_address(settings: Settings, keys: ApiKeys) -> None:
    """Raise `StartError` where other machines could reach a service that has no API key yet."""
    if on_loopback(settings.host) or settings.require_keys or keys.any():
        return
    raise StartError(
        f"other machines can reach {settings.host!r}, and there is no API key yet: create one with "
        "`touchstone keys create NAME --scope admin`, or set TOUCHSTONE_REQUIRE_KEYS=true to start "
        "without any"
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _has_expired(stored: Mapping[str, str], now: int) -> bool:
    return "expires_at" in stored and now >= int(stored["expires_at"])


def _decode_key(stored: Mapping[str, str]) -> Key:
    times = ("created_at", "expires_at", "used_at")
    fields = {name: stored[name] for name in ("id", "name", "tenant", "scope")}
    return Key.model_validate(
        fields | {name: codec.decode_time(stored[name]) for name in times if name in stored}
    )
