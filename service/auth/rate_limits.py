"""How fast a tenant's requests may come, and what each answer says of it.

The fields are those of draft-ietf-httpapi-ratelimit-headers: the policy, and how it stands. A bucket holds
what may come in a minute, so `t` tells in how many seconds it is full again, or of a refused request when it
is worth coming back.
"""

from __future__ import annotations

import math

from anyio import to_thread
from fastapi import Request
from starlette.types import Scope

from touchstone.errors import LedgerUnavailable, RateLimited
from touchstone.ledger.quotas import Quotas, Rate, RateLimitResult

WINDOW = 60
_STANDING = "touchstone.standing"


async def take(request: Request, quotas: Quotas, tenant: str, rate: Rate) -> None:
    """Count a request against its tenant's rate. Raises RateLimited.

    While the ledger is out of reach nothing is counted: whatever needs it fails anyway.
    """
    try:
        standing = await to_thread.run_sync(quotas.take, tenant, rate)
    except LedgerUnavailable:
        return
    if standing is not None:
        request.scope[_STANDING] = standing
        _check(standing)


def _check(standing: RateLimitResult) -> None:
    if not standing.granted:
        after = math.ceil(standing.reset_seconds)
        raise RateLimited(
            f"at most {standing.limit:,} {standing.rate} a minute are allowed; try again in {after} s",
            retry_after=after,
            limit=standing.limit,
        )


def headers(scope: Scope) -> dict[str, str]:
    """What an answer says of the rate that its request counted against; nothing where none applies."""
    standing: RateLimitResult | None = scope.get(_STANDING)
    if standing is None:
        return {}
    return {
        "RateLimit-Policy": f'"{standing.rate}";q={standing.limit};w={WINDOW}',
        "RateLimit": f'"{standing.rate}";r={standing.remaining};t={math.ceil(standing.reset_seconds)}',
    }
