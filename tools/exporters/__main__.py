"""Export, check, record: `python -m tools.exporters [PATTERN]` tries the cases whose names match."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tools.exporters.check import Reference, compare, load, sample_photo
from tools.exporters.environments import ENVIRONMENTS, FOLDER, Environment, Exporter
from tools.exporters.protocol import Facts
from tools.exporters.record import ROOT, Row, read_record, save_record, write_docs
from tools.exporters.samples import keep
from touchstone.errors import Failure


def main() -> None:
    """Try all cases that match the pattern of the first argument."""
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for environment in ENVIRONMENTS:
        environment.install()
        try_cases(environment, pattern)
    write_docs()


def try_cases(environment: Environment, pattern: re.Pattern[str]) -> None:
    """Export and check the matching cases of an environment; each row is saved at once."""
    with closing(Exporter(environment)) as exporter, tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        for case in filter(pattern.search, exporter.cases):
            row = try_case(exporter, case, Path(folder))
            print(row, flush=True)
            save_row(row, exporter.versions)


def save_row(row: Row, versions: dict[str, str]) -> None:
    """Put a row into the record in place of an earlier one of its name."""
    record = read_record()
    others = tuple(other for other in record.rows if other.case != row.case)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    save_record(replace(record, date=today, versions={**record.versions, **versions}, rows=(*others, row)))


def try_case(exporter: Exporter, case: str, folder: Path) -> Row:
    """What becomes of one case; its files are gone afterwards."""
    path = folder / "network.onnx"
    facts = exporter.export(case, path)
    try:
        if "error" in facts:
            return Row(case, "not exported", reason=_shorten(facts["error"], path))
        return judge(case, path, facts)
    finally:
        shutil.rmtree(folder)
        folder.mkdir()


def judge(case: str, path: Path, facts: Facts) -> Row:
    """Whether Touchstone accepts a file that ONNX Runtime runs, and agrees with it."""
    try:
        reference = Reference.load(path, facts.get("layout", "nchw"))
        reference.answer(sample_photo(facts["side"]))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has a type for each error
        return Row(case, "not run", reason=_shorten(str(error), path))
    try:
        found = compare(load(path, facts), reference, facts["side"])
    except Exception as error:  # noqa: BLE001 - a crash is a result, too
        reason = error.detail if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        return Row(case, "refused", reason=_shorten(reason, path))
    row = Row(case, "accepted", found.logits, found.gradient, found.radius)
    if not row.agrees:
        return replace(row, outcome="differs")
    keep(case, path, facts)
    return row


def _shorten(reason: str, path: Path) -> str:
    """The beginning of a reason, without the folders of this machine."""
    return reason.replace(f"{path.parent}/", "").replace(f"{ROOT}/", "")[:300]


if __name__ == "__main__":
    main()
