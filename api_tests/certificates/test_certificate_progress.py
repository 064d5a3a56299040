"""A running certificate reports its counts, and the bounds that would follow from them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from scipy import stats

from touchstone.engine import Engine
from touchstone.evaluation import run as run_module
from touchstone.evaluation.local import canonicalize
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.ledger.records import ModelRef, Progress, Submission
from touchstone.methods import find
from touchstone.models.zoo import find_manifest
from touchstone.training.datasets import fashion_mnist_sample

Reports = list[tuple[Progress, dict[str, float]]]
MANIFEST = find_manifest("fashion-mnist-cnn")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def upload() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[1]).save(buffer, "PNG")
    return buffer.getvalue()


def run_certificate(
    engine: Engine, upload: bytes, method: str, *, every: float = 0, prior: Any = None, **parameters: Any
) -> tuple[JobOutcome, Reports]:
    """A certificate and what was reported on the way, at most every so many seconds."""
    png, image = canonicalize(upload)
    submission = Submission(
        kind="certificate",
        method=method,
        model=ModelRef(id=MANIFEST.id, digest=MANIFEST.digest),
        image=image,
        parameters=find(method).parse({"sigma": 0.12, **parameters}).model_dump(mode="json"),
    )
    reports: Reports = []
    with patch.object(run_module, "REPORT_SECONDS", every):
        ended = run_job(submission, png, engine, report=lambda *report: reports.append(report), prior=prior)
    return ended, reports


def interval_reports(reports: Reports) -> list[dict[str, float]]:
    return [metric for _, metric in reports if "n" in metric]


@pytest.mark.parametrize("rule", ["group_sequential", "e_process", "fixed"])
def test_reported_interval_narrows_to_the_bounds_of_the_certificate(
    engine: Engine, upload: bytes, rule: str
) -> None:
    ended, reports = run_certificate(engine, upload, "smoothing", n=3_000, rule=rule)
    sampling = ended.result["sampling"]
    metrics = interval_reports(reports)
    names = ("n_used", "nA", "pA_lower", "pA_upper")
    assert metrics[-1] == dict(zip(("n", "hits", "lower", "upper"), map(sampling.get, names), strict=True))
    assert len(metrics) > 5
    assert [one["n"] for one in metrics] == sorted({one["n"] for one in metrics})
    for one in metrics:
        assert 0 <= one["lower"] < one["hits"] / one["n"] <= one["upper"] <= 1
    assert metrics[-1]["upper"] - metrics[-1]["lower"] < metrics[0]["upper"] - metrics[0]["lower"]


def test_pilot_reports_confidence_without_an_interval(engine: Engine, upload: bytes) -> None:
    _, reports = run_certificate(engine, upload, "smoothing", n=1_000, n0=600, rule="fixed")
    first = reports[0][1]
    assert set(first) == {"confidence"}
    assert all(0 < metric["confidence"] <= 1 for _, metric in reports[:-1])


def test_pixeldp_reports_its_own_bounds(engine: Engine, upload: bytes) -> None:
    ended, reports = run_certificate(engine, upload, "pixeldp", sigma=0.3, n=700, alpha=0.01)
    sampling, last = ended.result["sampling"], interval_reports(reports)[-1]
    assert (last["n"], last["hits"], last["lower"]) == (700, sampling["nA"], sampling["pA_lower"])
    misses = 700 - sampling["nA"]
    assert misses > 0
    assert last["upper"] == pytest.approx(stats.beta.ppf(1 - 0.01 / 10, sampling["nA"] + 1, misses))


def test_pooled_samples_count_from_the_first_report(engine: Engine, upload: bytes) -> None:
    first, _ = run_certificate(engine, upload, "smoothing", n=1_000, rule="e_process")
    ended, reports = run_certificate(
        engine, upload, "smoothing", n=1_200, rule="e_process", prior=first.counts
    )
    assert [one["n"] > 1_000 for one in interval_reports(reports)] == [True] * len(interval_reports(reports))
    assert interval_reports(reports)[-1]["n"] == 1_200
    again, reports = run_certificate(engine, upload, "smoothing", n=500, rule="e_process", prior=ended.counts)
    [(progress, metric)] = reports
    assert (metric["n"], again.result["sampling"]["n_used"], progress.done) == (1_200, 1_200, 0)


def test_bounds_are_computed_only_for_reports_that_are_sent(engine: Engine, upload: bytes) -> None:
    method = find("smoothing", "certificate")
    with patch.object(method, "bounds", autospec=True, side_effect=vars(method)["bounds"]) as bounds:
        _, reports = run_certificate(engine, upload, "smoothing", every=100, n=4_000, rule="fixed")
    assert len(reports) == 2  # the first answer and the end
    assert bounds.call_count == 2  # for the end, and for the result
