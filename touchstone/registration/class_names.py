"""The names of a model's classes, from a list or from lines of text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from touchstone.errors import InvalidParameter

MAX_CLASSES = 100_000
MAX_CLASS_LETTERS = 200
MAX_BYTES = 2**20
"""Of all class names together, as UTF-8: a manifest is read often. The 21,841 of ImageNet-21k have 0.7 MB."""


def _check_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError(f"expected a printable name, not {name[:40]!r}")
    return name.strip()


ClassName = Annotated[str, Field(min_length=1, max_length=MAX_CLASS_LETTERS), AfterValidator(_check_name)]
_CLASSES = TypeAdapter(
    Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=MAX_CLASSES, fail_fast=True)]
)


def check_lines(names: tuple[str, ...]) -> None:
    """Raise ValueError, which names the first invalid line."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"labels: {len(names)} lines; 2 to {MAX_CLASSES:,} classes are allowed")
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable() or len(name) > MAX_CLASS_LETTERS:
            raise ValueError(
                f"labels: line {number} is not a printable name of 1 to {MAX_CLASS_LETTERS} characters: "
                f"{name[:40]!r}"
            )


def check_bytes(names: tuple[str, ...]) -> None:
    """Raise ValueError where the names are too long together."""
    size = sum(len(name.encode()) for name in names)
    if size > MAX_BYTES:
        raise ValueError(f"classes: {size:,} bytes of names together; at most {MAX_BYTES:,} are allowed")


def parse_classes(names: Any) -> tuple[str, ...]:
    """The names of the classes, also where they were published. Raises InvalidParameter."""
    if names is None:
        raise InvalidParameter(
            "classes: name the classes, since what is published with the model does not", field="classes"
        )
    try:
        parsed = _CLASSES.validate_python(names)
    except ValidationError as error:
        raise InvalidParameter(f"classes: {error.errors()[0]['msg']}", field="classes") from None
    try:
        check_bytes(parsed)
    except ValueError as error:
        raise InvalidParameter(str(error), field="classes") from None
    return parsed
