"""Touchstone tests how robust an image classifier is.

The library in a few names: `load` or `wrap` a model, `attack` it or `certify` its answers; `attacks()` and
`certificates()` list the methods. Heavy imports happen on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from touchstone.evaluation import attack, certify, load, samples, wrap
    from touchstone.evaluation.perturbation import success_area

__all__ = ["attack", "attacks", "certificates", "certify", "load", "samples", "success_area", "wrap"]


def attacks() -> list[dict[str, Any]]:
    """The cards of all attacks."""
    return _list_methods("attacks")


def certificates() -> list[dict[str, Any]]:
    """The cards of all certificates."""
    return _list_methods("certificates")


def _list_methods(package: str) -> list[dict[str, Any]]:
    """What the package lists. Once imported, it replaces the function of its name; see `methods.cards`."""
    from importlib import import_module  # noqa: PLC0415 - keeps `import touchstone` light

    listing: Any = import_module(f"touchstone.{package}")
    cards: list[dict[str, Any]] = listing()
    return cards


def __getattr__(name: str) -> Any:
    if name in ("attack", "certify", "load", "samples", "wrap"):
        from touchstone import evaluation  # noqa: PLC0415 - loads torch

        return getattr(evaluation, name)
    if name == "success_area":
        from touchstone.evaluation.perturbation import success_area  # noqa: PLC0415 - loads numpy

        return success_area
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - keeps `import touchstone` light

        return version("touchstone-robustness")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
