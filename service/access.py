"""Who asks, and what they may: every route that shows or changes something names the scope that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from fastapi import Request, Security
from fastapi.security import SecurityScopes

from service import rates
from touchstone.errors import InsufficientScope
from touchstone.jobs.record import LOCAL

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_CALLER = "touchstone.caller"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request: whose jobs and models it is about, and what may be done with them."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str | None = None


EVERYBODY = Caller(LOCAL, frozenset(SCOPES))
"""Whoever sends no key where none is needed."""


async def identify(request: Request, needed: SecurityScopes) -> Caller:
    """The caller, once it is known that they may do this."""
    caller = EVERYBODY
    missing = [scope for scope in needed.scopes if scope not in caller.scopes]
    if missing:
        raise InsufficientScope(f"this needs a key with the scope {missing[0]}", scope=missing[0])
    request.scope[_CALLER] = caller
    await rates.take(request, caller.tenant, "requests" if "read" in needed.scopes else "submissions")
    return caller


reader = Security(identify, scopes=["read"])
"""For routes that show something."""

submitter = Security(identify, scopes=["submit"])
"""For routes that start or end something."""

admin = Security(identify, scopes=["admin"])
"""For routes of the operator."""


def caller_of(request: Request) -> Caller:
    """Who sent this request; a route without a scope has no caller, and an answer of 500."""
    return cast(Caller, request.scope[_CALLER])


def found_in(scope: Mapping[str, Any]) -> Caller | None:
    """Who sent the request of this ASGI scope, where that was asked for already."""
    return cast(Caller | None, scope.get(_CALLER))
