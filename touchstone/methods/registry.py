"""The catalogue of all declared methods."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from touchstone.errors import UnknownMethod
from touchstone.methods.budget import total_cost
from touchstone.methods.declaration import Kind, Method, _registered


@cache
def _discover() -> None:
    for package in ("touchstone.attacks", "touchstone.certificates"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def catalogue(kind: Kind | None = None) -> Mapping[str, type[Method]]:
    """All methods by name, or those of one kind."""
    _discover()
    return MappingProxyType(
        {name: cls for name, cls in sorted(_registered.items()) if kind is None or cls.kind == kind}
    )


def find(name: str, kind: Kind | None = None) -> type[Method]:
    """The method of this name; `UnknownMethod` names those that exist."""
    methods = catalogue(kind)
    if name not in methods:
        what = kind or "method"
        raise UnknownMethod(
            f"there is no {what} named {name[:60]!r}; there are: {', '.join(methods) or 'none'}",
            field="method",
        )
    return methods[name]


def build_card(method: type[Method]) -> dict[str, Any]:
    """A method as `GET /v1/attacks/{name}` shows it: text, taxonomy, paper, JSON Schema, cost of the
    defaults, example.
    """
    info = method.info
    cost = total_cost(method())
    return {
        "name": info.name,
        "kind": method.kind,
        "title": info.title,
        "description": inspect.cleandoc(method.__doc__ or ""),
        "knowledge": info.knowledge,
        "access": info.access,
        "targeted": info.targeted,
        "norms": list(info.norms),
        "budget": info.budget,
        "scope": info.scope,
        "paper": {"title": info.paper, "url": info.url},
        "cost": {"forward": cost.forward, "backward": cost.backward},
        "schema": method.model_json_schema(),
        "example": method().model_dump(mode="json"),
    }
