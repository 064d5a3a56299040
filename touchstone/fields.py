"""Parameter types: each parses the usual notations, rejects invalid values, and has a JSON Schema."""

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
        raise ValueError("expected a number, not a boolean")
    return value


def parse_fraction(value: Any) -> Any:
    """Read a number or a fraction such as "8/255" exactly; anything else is returned unchanged for pydantic
    to reject.
    """
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
        description="Gradients that are averaged at each step (EOT), for models with random outputs.",
    ),
    BeforeValidator(_refuse_bool),
]
"""Gradient samples of expectation over transformation."""

Queries = Annotated[
    int,
    Field(ge=1, le=10_000_000, description="Maximum queries to the model for one image."),
    BeforeValidator(_refuse_bool),
]
"""The query budget of an attack without gradients."""

Starts = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="Maximum random images that are tried until one meets the goal.",
    ),
    BeforeValidator(_refuse_bool),
]
"""The starting points of a decision-based attack."""

Ratio = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_parse_finite)]
"""A finite real number."""

Confidence = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), BeforeValidator(_parse_finite)]
"""A probability that is neither 0 nor 1."""

Defence = Annotated[
    str, StringConstraints(pattern=r"^(none|jpeg-([1-9][0-9]?|100)|bits-[1-7]|median-[357])$")
]
"""An image transform by name: JPEG at a quality, a bit depth, or a median filter of a window."""

Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_refuse_bool)]
"""Selects the noise streams of a job; equal seeds give equal noise."""


def refuse_unknown(fields: Iterable[str], known: Iterable[str], name: str) -> None:
    """Raise `InvalidParameter` for an unknown field, with a suggestion."""
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
"""What a method needs of the attacked model: gradients, logits, decisions alone, or, for a transfer attack,
only the final verdict.
"""


def invalid_parameter(error: ValidationError) -> InvalidParameter:
    """Turn pydantic's errors into one failure that names the first invalid field and lists all."""
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
