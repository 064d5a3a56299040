"""Facts of a model from several sources, of which the first that has one counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from touchstone.errors import InvalidParameter

STATED = "the request"
PACKAGED = ("torchvision/", "timm/")
"""Architectures for which an installed package publishes a preprocessing."""

MAX_SHOWN = 80


@dataclass(frozen=True)
class Facts:
    """What one source says, by the names of a registration's fields, such as `input.height` or `mean`."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Merged:
    """Values, and who says so: of those that the client did not state, or that another source contradicts."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def merge(facts: Sequence[Facts]) -> Merged:
    """The first value of each field; contradictions are noted in its source."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for one in facts:
        for name, value in one.values.items():
            if name not in values:
                values[name] = value
                sources[name] = one.source
            elif not _agree(values[name], value):
                sources[name] += f"; {one.source} says {_format(value)}"
    return Merged(values, {name: text for name, text in sources.items() if text != STATED})


def _agree(one: Any, other: Any) -> bool:
    listed = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if listed else bool(one == other)


def _format(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > 3:
        return f"otherwise: {len(value):,} values"
    return repr(list(value) if isinstance(value, tuple) else value)[:MAX_SHOWN]


def refuse(field: str, what: str) -> InvalidParameter:
    """The error of a file that cannot be used as it is; `field` is its part of the form."""
    return InvalidParameter(f"{field}: {what}"[:500], field=field)


def read_number(config: Mapping[str, Any], name: str, field: str, default: float | None = None) -> float:
    """A finite number of a configuration. Raises InvalidParameter."""
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise refuse(field, f"{name} must be a number, not {_format(value)}")
    return value


def read_numbers(config: Mapping[str, Any], name: str, field: str) -> tuple[float, ...]:
    """One to four finite numbers of a configuration, for the channels. Raises InvalidParameter."""
    values = config.get(name)
    listed = values if isinstance(values, list) else [values]
    if not 1 <= len(listed) <= 4:
        raise refuse(field, f"{name} must have a number for each channel")
    return tuple(read_number({name: value}, name, field) for value in listed)


def read_pair(value: Any, name: str, field: str) -> tuple[int, int]:
    """Height and width, from one number, two, or an object. Raises InvalidParameter."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in sides):
        raise refuse(field, f"{name} must be a height and a width of 1 to 4096, not {_format(value)}")
    return sides[0], sides[1]
