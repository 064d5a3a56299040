"""The tables of docs/reliability.md, from the recorded campaign and measurements.

`python -m chaos.document` updates them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import read_record

DOCUMENT = Path(__file__).parents[1] / "docs/reliability.md"
CAMPAIGN, PROMISES = "chaos", "chaos-promises"
_COUNTS = ("strikes", "attempted", "accepted", "succeeded", "failed", "canceled", "innocent_failed", "lost")
_TIMES = ("p50", "p99", "max")
_CAMPAIGN_HEAD = (
    "fault",
    "injected",
    *(name.replace("_", " ") for name in _COUNTS[1:]),
    "lost, 95 % bound",
    "duplicated",
    "webhooks due",
    "delivered",
    "recovered",
    *(f"{one} s" for one in _TIMES),
)
_PROMISES_HEAD = ("measurement", "limit s", "n", *(f"{one} s" for one in _TIMES))


def update_tables(text: str) -> str:
    """The document with the tables of the records."""
    return _replace_table(
        _replace_table(text, "campaign", read_record(CAMPAIGN), campaign_table),
        "promises",
        read_record(PROMISES),
        promises_table,
    )


def _replace_table(text: str, what: str, record: Mapping[str, Any], table: Any) -> str:
    marks = f"<!-- {what} -->", f"<!-- end of {what} -->"
    inside = [marks[0], *([table(record["rows"])] if record else []), marks[1]]
    return re.sub(f"{marks[0]}.*?{marks[1]}", lambda _: "\n".join(inside), text, flags=re.DOTALL)


def campaign_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Jobs and recovery times by fault."""
    return _format_table(_CAMPAIGN_HEAD, map(_fault_cells, rows))


def _fault_cells(row: Mapping[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in _COUNTS]
    bound = f"{100 * row['lost_at_most']:.2f} %"
    more = [f"{row[name]:,}" for name in ("duplicated", "to_tell", "told", "recoveries")]
    return [row["fault"], *counts, bound, *more, *_time_cells(row)]


def promises_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Limits and measured times."""
    return _format_table(_PROMISES_HEAD, map(_promise_cells, rows))


def _promise_cells(row: Mapping[str, Any]) -> list[str]:
    limit = "–" if row["limit"] is None else f"{row['limit']:g}"
    return [row["promise"], limit, str(row["n"]), *_time_cells(row)]


def _time_cells(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[name]:.3f}" if name in row else "–" for name in _TIMES]


def _format_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(update_tables(DOCUMENT.read_text()))
