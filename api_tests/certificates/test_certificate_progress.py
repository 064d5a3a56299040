"""A certificate that is under way tells how its count stands, and the bounds that would follow from it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from scipy import stats

from touchstone.engine import Engine
from touchstone.evaluation import run as running
from touchstone.evaluation.local import canonical
from touchstone.evaluation.run import Finished, run
from touchstone.ledger.records import ModelRef, Progress, Submission
from touchstone.methods import find
from touchstone.models.zoo import manifest
from touchstone.training.datasets import fashion_mnist_sample

Told = list[tuple[Progress, dict[str, float]]]
CARD = manifest("fashion-mnist-cnn")


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


def certified(
    engine: Engine, upload: bytes, method: str, *, every: float = 0, prior: Any = None, **parameters: Any
) -> tuple[Finished, Told]:
    """A certificate and what was reported on the way, at most every so many seconds."""
    png, image = canonical(upload)
    submission = Submission(
        kind="certificate",
        method=method,
        model=ModelRef(id=CARD.id, digest=CARD.digest),
        image=image,
        parameters=find(method).parse({"sigma": 0.12, **parameters}).model_dump(mode="json"),
    )
    told: Told = []
    with patch.object(running, "REPORT_EVERY", every):
        ended = run(submission, png, engine, report=lambda *report: told.append(report), prior=prior)
    return ended, told


def counted(told: Told) -> list[dict[str, float]]:
    return [metric for _, metric in told if "n" in metric]


@pytest.mark.parametrize("rule", ["group_sequential", "e_process", "fixed"])
def test_the_interval_closes_in_on_what_the_certificate_says(
    engine: Engine, upload: bytes, rule: str
) -> None:
    ended, told = certified(engine, upload, "smoothing", n=3_000, rule=rule)
    sampling = ended.result["sampling"]
    metrics = counted(told)
    names = ("n_used", "nA", "pA_lower", "pA_upper")
    assert metrics[-1] == dict(zip(("n", "hits", "lower", "upper"), map(sampling.get, names), strict=True))
    assert len(metrics) > 5
    assert [one["n"] for one in metrics] == sorted({one["n"] for one in metrics})
    for one in metrics:
        assert 0 <= one["lower"] < one["hits"] / one["n"] <= one["upper"] <= 1
    assert metrics[-1]["upper"] - metrics[-1]["lower"] < metrics[0]["upper"] - metrics[0]["lower"]


def test_the_pilot_has_no_interval_but_its_confidence(engine: Engine, upload: bytes) -> None:
    _, told = certified(engine, upload, "smoothing", n=1_000, n0=600, rule="fixed")
    first = told[0][1]
    assert set(first) == {"confidence"}
    assert all(0 < metric["confidence"] <= 1 for _, metric in told[:-1])


def test_pixeldp_bounds_are_its_own(engine: Engine, upload: bytes) -> None:
    ended, told = certified(engine, upload, "pixeldp", sigma=0.3, n=700, alpha=0.01)
    sampling, last = ended.result["sampling"], counted(told)[-1]
    assert (last["n"], last["hits"], last["lower"]) == (700, sampling["nA"], sampling["pA_lower"])
    misses = 700 - sampling["nA"]
    assert misses > 0
    assert last["upper"] == pytest.approx(stats.beta.ppf(1 - 0.01 / 10, sampling["nA"] + 1, misses))


def test_what_was_known_before_counts_from_the_start(engine: Engine, upload: bytes) -> None:
    first, _ = certified(engine, upload, "smoothing", n=1_000, rule="e_process")
    ended, told = certified(engine, upload, "smoothing", n=1_200, rule="e_process", prior=first.counts)
    assert [one["n"] > 1_000 for one in counted(told)] == [True] * len(counted(told))
    assert counted(told)[-1]["n"] == 1_200
    again, told = certified(engine, upload, "smoothing", n=500, rule="e_process", prior=ended.counts)
    [(progress, metric)] = told
    assert (metric["n"], again.result["sampling"]["n_used"], progress.done) == (1_200, 1_200, 0)


def test_bounds_are_computed_only_when_they_are_told(engine: Engine, upload: bytes) -> None:
    method = find("smoothing", "certificate")
    with patch.object(method, "bounds", autospec=True, side_effect=vars(method)["bounds"]) as bounds:
        _, told = certified(engine, upload, "smoothing", every=100, n=4_000, rule="fixed")
    assert len(told) == 2  # the first answer and the end
    assert bounds.call_count == 2  # for the end, and for the result
