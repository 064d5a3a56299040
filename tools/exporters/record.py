"""What came of every file, and the table that docs/models.md makes of it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks/results/exporters.json"
DOCUMENT = ROOT / "docs/models.md"
MARKS = ("<!-- exporters -->", "<!-- end of exporters -->")

JUDGED = ("accepted", "refused", "differs")

LOGITS_TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2
"""Half precision has 11 bits, and ONNX Runtime computes parts of such a network in single precision."""

GRADIENT_TOLERANCE = 0.05
HALF_GRADIENT_TOLERANCE = 0.15
"""Central differences of what is rounded to half precision are themselves as inaccurate."""


@dataclass(frozen=True)
class Row:
    """One file: what became of it, and how far it is from ONNX Runtime.

    `outcome` is `accepted`, `refused` or `differs`, or says why there is nothing to judge: `not exported`, or
    `not run` by ONNX Runtime.
    """

    case: str
    outcome: str
    logits: float | None = None
    gradient: float | None = None
    radius: float | None = None
    reason: str = ""

    @property
    def library(self) -> str:
        """Where the architecture is from."""
        return self.case.split("/")[0]

    @property
    def architecture(self) -> str:
        """The network's name in its library."""
        return self.case.split("/")[1]

    @property
    def exporter(self) -> str:
        """What wrote the file."""
        return self.case.split("/")[2]

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding, and ONNX Runtime judges the attack a success."""
        half = re.search(r"half|float16", self.exporter) is not None
        logits = HALF_TOLERANCE if half else LOGITS_TOLERANCE
        gradient = HALF_GRADIENT_TOLERANCE if half else GRADIENT_TOLERANCE
        close = (self.logits or 0) <= logits and (self.gradient or 0) <= gradient
        return close and self.radius is not None


@dataclass(frozen=True)
class Record:
    """All rows, and the versions they were tried with."""

    date: str
    versions: Mapping[str, str]
    rows: tuple[Row, ...]


def read_record() -> Record:
    """The record as it was left; empty where there is none."""
    if not RECORD.exists():
        return Record("", {}, ())
    found = json.loads(RECORD.read_text())
    return Record(found["date"], found["versions"], tuple(Row(**row) for row in found["rows"]))


def save_record(record: Record) -> None:
    """Write the record, one row a line."""
    rows = ",\n".join(json.dumps(_shorten(row)) for row in sorted(record.rows, key=lambda row: row.case))
    versions = json.dumps(dict(sorted(record.versions.items())))
    RECORD.write_text(f'{{"date": "{record.date}",\n"versions": {versions},\n"rows": [\n{rows}\n]}}\n')


def _shorten(row: Row) -> dict[str, Any]:
    found = {name: value for name, value in asdict(row).items() if value not in (None, "")}
    return {
        name: float(f"{value:.2g}") if isinstance(value, float) else value for name, value in found.items()
    }


def write_docs() -> None:
    """Write the table into docs/models.md."""
    before, rest = DOCUMENT.read_text("utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{format_table(read_record())}\n{MARKS[1]}{after}", "utf-8")


def format_table(record: Record) -> str:
    """What docs/models.md says of the record."""
    judged = [row for row in record.rows if row.outcome in JUDGED]
    accepted = [row for row in judged if row.outcome == "accepted"]
    exported = [row for row in record.rows if row.outcome != "not exported"]
    networks = {(row.library, row.architecture) for row in judged}
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return "\n".join(
        [
            f"Tried on {record.date}: {len(exported)} files of {len(networks)} architectures. ONNX Runtime "
            f"runs {len(judged)} of them, and {len(accepted)} of these are accepted "
            f"({100 * len(accepted) / len(judged):.1f} %). With {versions}.",
            "",
            *_format_exporters(judged),
            "",
            *_format_libraries(judged),
            "",
            *_format_others(judged),
        ]
    ).rstrip()


def _format_exporters(rows: Iterable[Row]) -> list[str]:
    lines = ["| exporter | files | accepted | largest difference of logits |", "| --- | ---: | ---: | ---: |"]
    for exporter, found in _group(rows, "exporter").items():
        accepted = [row for row in found if row.outcome == "accepted"]
        worst = max((row.logits or 0 for row in accepted), default=0)
        lines.append(f"| {exporter} | {len(found)} | {len(accepted)} | {worst:.0e} |")
    return lines


def _format_libraries(rows: Iterable[Row]) -> list[str]:
    lines = ["| networks of | architectures |", "| --- | --- |"]
    for library, found in _group(rows, "library").items():
        names = sorted({row.architecture for row in found})
        lines.append(f"| {library} | {', '.join(names)} |")
    return lines


def _format_others(rows: Iterable[Row]) -> list[str]:
    others = [row for row in rows if row.outcome != "accepted"]
    lines = [f"| {row.case} | {_explain(row)} |" for row in others]
    return ["| not accepted | why |", "| --- | --- |", *lines] if lines else []


def _explain(row: Row) -> str:
    """Why a file is refused, or by how much it differs."""
    differences = f"logits differ by {row.logits}, the gradient by {row.gradient}; attacked at {row.radius}"
    return row.reason.replace("|", "/") or differences


def _group(rows: Iterable[Row], field: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, field)].append(row)
    return dict(sorted(groups.items()))


if __name__ == "__main__":
    write_docs()
