"""Access: who may do what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, params
from fastapi.routing import APIRoute, iter_route_contexts

from service.app import create_app
from service.auth.caller import caller_of
from service.auth.permissions import identify
from touchstone.settings import Settings

APP = create_app(Settings(home=Path("nowhere")), dispatch=lambda _: None)

PUBLIC_PATHS = {
    "/",
    *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
    *("/docs", "/docs/start.js", "/openapi.json"),
    *("/samples", "/samples/{name}", "/samples/thumbnails/{name}"),
}
"""What strangers may have: whether the service is alive, and files that are the same for everybody."""


def routes() -> Iterator[Any]:
    contexts = iter_route_contexts(APP.routes)
    return (context for context in contexts if isinstance(context.original_route, APIRoute))


def scopes(route: Any) -> list[str]:
    """What a route needs, once it asks for that before anything else."""
    first = route.dependencies[:1]
    if not (first and isinstance(first[0], params.Security) and first[0].dependency is identify):
        return []
    return list(first[0].scopes)


def test_every_route_but_the_public_ones_checks_its_scope_first() -> None:
    assert {route.path for route in routes() if not scopes(route)} == PUBLIC_PATHS


def test_routes_that_change_state_need_more_than_the_read_scope() -> None:
    changing = [route for route in routes() if not route.methods <= {"GET", "HEAD"}]
    assert changing
    assert not [route.path for route in changing if "read" in scopes(route)]


def test_caller_of_raises_on_a_route_without_a_scope() -> None:
    with pytest.raises(KeyError):
        caller_of(Request({"type": "http"}))
