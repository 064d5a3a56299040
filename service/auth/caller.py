"""The caller of a request."""

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
    """The sender of a request: the tenant whose jobs and models it may see, and its scopes."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str | None = None


ANONYMOUS = Caller(LOCAL, IMPLIED_SCOPES["admin"])
"""The caller without a key, where none is needed."""


def caller_of(request: Request) -> Caller:
    """The caller of this request; raises `KeyError`, which is a 500, on a route that declares no scope."""
    return cast(Caller, request.scope[_CALLER])


def find_caller(scope: Mapping[str, Any]) -> Caller | None:
    """The caller of the request of this ASGI scope; None before it is authenticated."""
    return cast(Caller | None, scope.get(_CALLER))
