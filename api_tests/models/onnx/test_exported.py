"""Files of real exporters, kept by `make exporters`, against ONNX Runtime."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tools.exporters.check import Reference, compare, load
from tools.exporters.record import (
    DOCUMENT,
    GRADIENT_TOLERANCE,
    HALF_TOLERANCE,
    JUDGED,
    LOGITS_TOLERANCE,
    Row,
    format_table,
    read_record,
)
from tools.exporters.samples import CASES, SAMPLES, read_manifest


@pytest.mark.parametrize("facts", read_manifest(), ids=lambda facts: facts["file"].removesuffix(".onnx"))
def test_exported_file_agrees_with_onnxruntime(facts: dict[str, Any]) -> None:
    path = SAMPLES / facts["file"]
    found = compare(load(path, facts), Reference.load(path, facts.get("layout", "nchw")), facts["side"])
    row = Row(facts["case"], "accepted", found.logits, found.gradient, found.radius)
    assert row.agrees, row


def test_exported_files_are_all_there_and_small() -> None:
    assert {one["case"] for one in read_manifest()} == set(CASES)
    assert {one["file"] for one in read_manifest()} == {path.name for path in SAMPLES.glob("*.onnx")}
    sizes = [path.stat().st_size for path in SAMPLES.glob("*.onnx")]
    assert max(sizes) < 40_000
    assert sum(sizes) < 400_000


@pytest.mark.parametrize(
    ("logits", "gradient", "radius"),
    [(2 * LOGITS_TOLERANCE, 0.0, 0.1), (0.0, 2 * GRADIENT_TOLERANCE, 0.1), (0.0, 0.0, None)],
)
def test_row_that_differs_in_one_respect_does_not_agree(
    logits: float, gradient: float, radius: float | None
) -> None:
    assert Row("own/net/torch.onnx", "accepted", 0.0, 0.0, 0.1).agrees
    assert not Row("own/net/torch.onnx", "accepted", logits, gradient, radius).agrees
    assert Row("own/net/float16", "accepted", HALF_TOLERANCE, 0.0, 0.1).agrees


def test_models_docs_show_the_record_of_exporters() -> None:
    assert format_table(read_record()) in DOCUMENT.read_text("utf-8"), "run python -m tools.exporters.record"


def test_record_of_exporters_names_no_folder_of_a_machine() -> None:
    assert [row.case for row in read_record().rows if re.search(r"(^|[\s'\"(])/\w+/", row.reason)] == []


def test_almost_every_exported_file_that_onnxruntime_runs_is_accepted() -> None:
    judged = [row.outcome for row in read_record().rows if row.outcome in JUDGED]
    assert len(judged) > 150
    assert judged.count("accepted") >= 0.98 * len(judged)
