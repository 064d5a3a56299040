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

APP = create_app(Settings(home=Path("nowhere")), ring=lambda _: None)

OPEN = {
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


def test_every_route_but_the_open_ones_names_its_scope_before_all_else() -> None:
    assert {route.path for route in routes() if not scopes(route)} == OPEN


def test_what_changes_something_needs_more_than_to_read() -> None:
    changing = [route for route in routes() if not route.methods <= {"GET", "HEAD"}]
    assert changing
    assert not [route.path for route in changing if "read" in scopes(route)]


def test_a_route_without_a_scope_has_no_caller() -> None:
    with pytest.raises(KeyError):
        caller_of(Request({"type": "http"}))
