"""Authentication and scopes: every route that shows or changes something names the scope that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, cast

from anyio import to_thread
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from service.auth import rate_limits
from service.auth.caller import _CALLER, ANONYMOUS, Caller, caller_of
from service.state.backend import AllTenants, Backend
from touchstone.errors import (
    InsufficientScope,
    KeyExpired,
    KeyInvalid,
    KeyMissing,
    LedgerUnavailable,
    RateLimited,
)
from touchstone.ledger.api_keys import IMPLIED_SCOPES
from touchstone.ledger.quotas import Rate

_BEARER = HTTPBearer(
    scheme_name="key",
    bearerFormat="ts_ and 81 characters",
    auto_error=False,
    description="An API key. On the loopback none is needed unless the operator wants it; one that is sent "
    "is checked in any case. Of its scopes `read` shows, `submit` starts and ends things too, `admin` also "
    "makes and revokes keys; each includes those before it.",
)


async def identify(
    request: Request,
    backend: AllTenants,
    needed: SecurityScopes,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Caller:
    """Authenticate the caller, check the scope of the route, and count the request against its rate."""
    caller = await _authenticate(request, backend, credentials)
    request.scope[_CALLER] = caller
    missing = [scope for scope in needed.scopes if scope not in caller.scopes]
    if missing:
        raise InsufficientScope(
            f"Authorization: this needs a key with the scope {missing[0]}", scope=missing[0]
        )
    rate: Rate = "requests" if "read" in needed.scopes else "submissions"
    await rate_limits.take(request, backend.ledger.quotas, caller.tenant, rate)
    return caller


async def _authenticate(
    request: Request, backend: Backend, credentials: HTTPAuthorizationCredentials | None
) -> Caller:
    if credentials is not None:
        try:
            key = await to_thread.run_sync(backend.ledger.keys.check, credentials.credentials)
        except (KeyInvalid, KeyExpired):
            _limit_failures(request, backend)
            raise
        return Caller(key.tenant, IMPLIED_SCOPES[key.scope], key.id)
    if backend.settings.needs_keys:
        raise KeyMissing("Authorization: an API key is needed; send it as Authorization: Bearer ts_…")
    return ANONYMOUS


def _limit_failures(request: Request, backend: Backend) -> None:
    """Count a refused key; raise `RateLimited` where too many came from the request's address."""
    after = math.ceil(backend.failed_keys.record(request.client.host if request.client else ""))
    if after:
        most = backend.settings.refused_keys
        raise RateLimited(
            f"Authorization: more than {most:,} refused API keys a minute came from your address, and this "
            f"was another; try again in {after} s, with a good one",
            retry_after=after,
            limit=most,
        ) from None


reader = Security(identify, scopes=["read"])
"""For routes that show something."""

submitter = Security(identify, scopes=["submit"])
"""For routes that create, cancel or delete something."""

admin = Security(identify, scopes=["admin"])
"""For routes of the operator."""


def permission_check(request: Request) -> Callable[[], bool] | None:
    """`is_still_permitted` for a long response; None where the caller has no key that could be revoked."""
    return partial(is_still_permitted, request) if caller_of(request).key_id else None


def is_still_permitted(request: Request) -> bool:
    """Whether the caller's key is still valid; long responses check it repeatedly. It reads the ledger;
    raises LedgerUnavailable.
    """
    caller, backend = caller_of(request), cast(Backend, request.app.state.backend)
    return caller.key_id is None or backend.ledger.keys.is_valid(caller.key_id)


def check_still_permitted(request: Request) -> None:
    """Raise `KeyInvalid` where the caller's key has become invalid since the request began; not while the
    ledger is unavailable.
    """
    with suppress(LedgerUnavailable):
        if not is_still_permitted(request):
            raise KeyInvalid("Authorization: the API key was revoked, or has expired, while you waited")
