"""Who sent a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request

from touchstone.ledger.api_keys import IMPLIED_SCOPES, Scope
from touchstone.ledger.records import LOCAL

_CALLER = "touchstone.caller"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request: whose jobs and models it is about, and what may be done with them."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str | None = None


ANONYMOUS = Caller(LOCAL, IMPLIED_SCOPES["admin"])
"""Whoever sends no key where none is needed."""


def caller_of(request: Request) -> Caller:
    """Who sent this request; a route without a scope has no caller, and an answer of 500."""
    return cast(Caller, request.scope[_CALLER])


def find_caller(scope: Mapping[str, Any]) -> Caller | None:
    """Who sent the request of this ASGI scope, where that was asked for already."""
    return cast(Caller | None, scope.get(_CALLER))
