"""A small subset of JSONPath for answers of remote models.

    path = ["$"] step*        step = "." name | "[" index "]" | "[*]"

`predictions[*].scores` are the `scores` of each of `predictions`; `$` is the whole; a name may hold letters,
digits, - and _.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Step = str | int | None
"""A name, an index, or None for each of a list."""

_STEP = re.compile(r"\.?([A-Za-z0-9_-]+)|\[([0-9]{1,6}|\*)\]")


@dataclass(frozen=True)
class RowPath:
    """A path whose first [*] selects the rows of a request; without one, there is a single row."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> RowPath:
        """Raises ValueError for an invalid path."""
        rest = text.removeprefix("$")
        steps: list[Step] = []
        while rest:
            found = _STEP.match(rest)
            if found is None:
                raise ValueError(
                    f"answer: {rest[:40]!r} is not a step of a path such as predictions[*].scores"
                )
            name, index = found.groups()
            steps.append(name if name is not None else None if index == "*" else int(index))
            rest = rest[found.end() :]
        return cls(tuple(steps))

    def __str__(self) -> str:
        return "$" + "".join(map(_format_step, self.steps))

    @property
    def over_rows(self) -> bool:
        """Whether it selects several rows."""
        return None in self.steps

    def rows(self, value: Any) -> list[Any]:
        """The answer of each row. Raises LookupError where the value has another structure."""
        found = _follow(value, self.steps)
        return found if self.over_rows else [found]


def _format_step(step: Step) -> str:
    if isinstance(step, str):
        return f".{step}"
    return "[*]" if step is None else f"[{step}]"


def _follow(value: Any, steps: tuple[Step, ...]) -> Any:
    for at, step in enumerate(steps):
        if step is None:
            if not isinstance(value, list):
                raise LookupError(_format_step(step))
            return [_follow(each, steps[at + 1 :]) for each in value]
        value = _take_step(value, step)
    return value


def _take_step(value: Any, step: str | int) -> Any:
    if isinstance(step, str) and isinstance(value, dict) and step in value:
        return value[step]
    if isinstance(step, int) and isinstance(value, list) and step < len(value):
        return value[step]
    raise LookupError(_format_step(step))
