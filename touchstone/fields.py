"""Parameter types: each parses what people write, refuses what makes no sense, and describes itself in
JSON Schema.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from touchstone.errors import InvalidParameter

NormName = Literal["linf", "l2", "l1", "l0"]


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not a truth value")
    return value


def parse_fraction(value: Any) -> Any:
    """Read a number or a fraction such as "8/255" exactly; anything else goes on unchanged to be refused."""
    _refuse_bool(value)
    if isinstance(value, str) and "/" in value:
        above, _, below = value[:100].partition("/")
        try:
            return float(above) / float(below)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f'"{value[:40]}" is not a fraction: write a number or, say, "8/255"') from None
    if isinstance(value, int) and abs(value) > 10**18:
        raise ValueError("the number is too large")
    return value


def _parse_finite(value: Any) -> Any:
    value = parse_fraction(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def parse_norm(value: Any) -> Any:
    """Read a norm's name in the spellings in use: Linf, L∞, inf, 2, L1 …"""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    name = str(value).strip().lower().replace("∞", "inf").replace("_", "")
    return name if name in get_args(NormName) else f"l{name}"


_FRACTION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1e6},
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?(/[1-9][0-9]{0,8})?$"},
    ]
}

Norm = Annotated[NormName, BeforeValidator(parse_norm)]

Distance = Annotated[
    float,
    BeforeValidator(_parse_finite),
    Field(ge=0, le=1e6, allow_inf_nan=False),
    WithJsonSchema(_FRACTION_SCHEMA),
]
"""A distance in the box [0,1]: a number or a fraction such as "8/255"."""

Integer = Annotated[int, BeforeValidator(_refuse_bool)]
"""A whole number, whose bounds are those of its field alone."""

Count = Annotated[int, Field(ge=1), BeforeValidator(_refuse_bool)]
"""A whole number of at least one."""

Natural = Annotated[int, Field(ge=0, le=1_000), BeforeValidator(_refuse_bool)]
"""A whole number from 0 to 1,000."""

EotSamples = Annotated[
    int,
    Field(
        ge=1,
        le=1_000,
        description="How many askings a gradient is the mean of: for models that answer at random (EOT).",
    ),
    BeforeValidator(_refuse_bool),
]
"""How often to ask for one gradient."""

Queries = Annotated[
    int,
    Field(ge=1, le=10_000_000, description="The most times that the model is asked about one image."),
    BeforeValidator(_refuse_bool),
]
"""What an attack without gradients may spend."""

Starts = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="The most random images that are tried for one that meets the goal.",
    ),
    BeforeValidator(_refuse_bool),
]
"""Where an attack that sees decisions alone may begin."""

Ratio = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_parse_finite)]
"""A finite real number."""

Defence = Annotated[
    str, StringConstraints(pattern=r"^(none|jpeg-([1-9][0-9]?|100)|bits-[1-7]|median-[357])$")
]
"""An image transform by name: JPEG at a quality, so many bits a value, the median of a window."""

Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_refuse_bool)]
"""Selects the noise streams of a job; equal seeds give equal noise."""


def refuse_unknown(fields: Iterable[str], known: Iterable[str], name: str) -> None:
    """Raise `InvalidParameter` for a field that there is not, with a guess at what was meant."""
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise _unknown_field(unknown[0], known, name)


def _unknown_field(field: str, known: Iterable[str], name: str) -> InvalidParameter:
    shown = field[:60]
    near = difflib.get_close_matches(shown, list(known), n=1)
    guess = f'; did you mean "{near[0]}"?' if near else "."
    return InvalidParameter(
        f"{shown}: {name} has no such field{guess} The fields are {', '.join(known)}", field=shown
    )


Access = Literal["gradients", "scores", "decisions", "transfer"]
"""What a method needs of the model it is judged on: its gradients, its logits, its answers alone, or no more
than the verdict.
"""


def invalid_parameter(error: ValidationError) -> InvalidParameter:
    """Turn pydantic's report into one failure that names the first field at fault and lists them all."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if not field and ": " in text:
            field, text = text.split(": ", 1)
        faults.append({"field": field, "message": text})
    first = faults[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return InvalidParameter(detail, field=first["field"] or None, errors=faults)
