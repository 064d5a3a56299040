"""Rate limits of tenants, and the header fields that report them.

The fields are those of draft-ietf-httpapi-ratelimit-headers: the policy and its current state. A bucket holds
the requests of one minute, so `t` is the seconds until it is full again; after a refusal, until a retry can
succeed.
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

    While the ledger is unavailable nothing is counted: requests that need it fail anyway.
    """
    if quotas.is_unlimited(tenant, rate):
        return
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
    """The rate-limit headers of a response; none where the request was not counted."""
    standing: RateLimitResult | None = scope.get(_STANDING)
    if standing is None:
        return {}
    return {
        "RateLimit-Policy": f'"{standing.rate}";q={standing.limit};w={WINDOW}',
        "RateLimit": f'"{standing.rate}";r={standing.remaining};t={math.ceil(standing.reset_seconds)}',
    }
