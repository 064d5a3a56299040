"""Attack jobs as a worker and the command line run them: outcome, deadline, and what is handed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import touchstone
from touchstone.digests import digest_of
from touchstone.engine import Engine, TaskHandle
from touchstone.engine.quantization import to_pixels
from touchstone.errors import DeadlineExceeded, InvalidParameter, JobCanceled
from touchstone.evaluation.local import run_file
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.images import decode, encode
from touchstone.ledger.records import ImageRef, ModelRef, Progress, Submission
from touchstone.methods import find
from touchstone.models.zoo import find_manifest

MODEL = "fashion-mnist-cnn"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def png() -> bytes:
    return encode(to_pixels(touchstone.samples()[2]).permute(1, 2, 0).numpy())


def attack(
    engine: Engine, png: bytes, method: str, *, end: str | None = None, at: int = 0, **how: Any
) -> JobOutcome:
    """Run an attack; `end` is what happens to it at its `at`-th answer: workers tell that to the task that
    runs, and to all that start later.
    """
    fields = {name: how.pop(name) for name in ("label", "target") if name in how}
    submission = Submission(
        kind="attack",
        method=method,
        model=ModelRef(id=MODEL, digest=find_manifest(MODEL).digest),
        image=ImageRef(digest=digest_of(png), width=28, height=28, channels=1),
        parameters=find(method).parse(how).model_dump(mode="json"),
        **fields,
    )
    tasks: list[TaskHandle] = []
    ended = False

    def started(task: TaskHandle) -> None:
        tasks.append(task)
        if end and ended:
            getattr(task, end)()

    def report(progress: Progress, _metric: dict[str, float]) -> None:
        nonlocal ended
        if end and progress.done >= at:
            ended = True
            getattr(tasks[-1], end)()

    return run_job(submission, png, engine, started=started, report=report)


@pytest.fixture
def _frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("touchstone.evaluation.run.REPORT_SECONDS", 0)


@pytest.mark.usefixtures("_frequent_reports")
@pytest.mark.parametrize(
    ("method", "how", "at"),
    [
        ("fmn", {"norm": "l2", "steps": 10_000}, 60),
        ("fab", {"norm": "linf", "steps": 10_000}, 40),
        ("pgd", {"eps": 0.1, "step_size": 0.01, "steps": 10_000, "early_stop": False}, 60),
        ("square", {"eps": 0.3, "queries": 2_000, "min_confidence": 1 - 1e-9}, 300),
        ("hopskipjump", {"queries": 100_000, "steps": 1_000}, 500),
    ],
)
def test_overdue_attack_returns_the_success_that_it_had_found(
    engine: Engine, png: bytes, method: str, how: dict[str, Any], at: int
) -> None:
    outcome = attack(engine, png, method, end="expire", at=at, **how)
    result = outcome.result
    assert result["stopped_by"] == "deadline_exceeded"
    assert (result["outcome"], result["success"]) == ("success", True)
    assert result["adversarial"]["label"] != result["original"]["label"]
    assert not outcome.canceled
    changed = decode(outcome.artifacts["adversarial.png"][0]).pixels.astype(int) - decode(png).pixels
    assert 0 < np.abs(changed).max() == round(255 * result["perturbation"]["linf"])
    if "eps" in how:
        assert result["perturbation"]["linf"] <= how["eps"]
    else:
        longer = attack(
            engine, png, method, **{**how, **({"queries": 1_000} if "queries" in how else {"steps": 60})}
        )
        norm = how.get("norm", "l2")
        assert result["perturbation"][norm] < 5 * longer.result["perturbation"][norm]


@pytest.mark.usefixtures("_frequent_reports")
def test_overdue_attack_that_found_nothing_says_when_and_at_which_step(engine: Engine, png: bytes) -> None:
    with pytest.raises(DeadlineExceeded, match=r"passed after \d+\.\d\d s, at step \d\d of 5000, before"):
        attack(engine, png, "pgd", end="expire", at=30, eps="1/255", steps=5_000)


def test_deadline_is_named_where_it_ends_an_attack(engine: Engine, png: bytes) -> None:
    submission = Submission(
        kind="attack",
        method="pgd",
        model=ModelRef(id=MODEL, digest=find_manifest(MODEL).digest),
        image=ImageRef(digest=digest_of(png), width=28, height=28, channels=1),
        parameters={"eps": 1 / 255, "steps": 10_000, "restarts": 1_000},
    )
    with pytest.raises(
        DeadlineExceeded, match=r"^the deadline of 0\.2 s passed after .* of 10000000, before"
    ):
        run_job(submission, png, engine, deadline=0.2)


@pytest.mark.usefixtures("_frequent_reports")
def test_canceled_attack_returns_nothing(engine: Engine, png: bytes) -> None:
    with pytest.raises(JobCanceled):
        attack(engine, png, "fmn", end="cancel", at=60, norm="l2", steps=10_000)


def test_target_that_the_model_predicts_already_is_a_success_of_no_distance(
    engine: Engine, png: bytes
) -> None:
    clean = attack(engine, png, "fgsm").result["original"]["label"]
    outcome = attack(engine, png, "pgd", target=clean)
    assert (outcome.result["outcome"], outcome.result["success"]) == ("already_at_target", True)
    assert outcome.result["perturbation"]["l2"] == 0
    assert outcome.result["queries"] == {"forward": 3, "backward": 0}  # two looks before, one after
    assert outcome.artifacts["adversarial.png"][0] == png
    wrong = attack(engine, png, "pgd", label=(clean + 1) % 10, target=clean)
    assert wrong.result["outcome"] == "already_misclassified"
    assert attack(engine, png, "pgd", label=(clean + 1) % 10).result["outcome"] == "already_misclassified"


def test_radius_below_one_level_is_a_failure_that_says_why(engine: Engine, png: bytes) -> None:
    result = attack(engine, png, "pgd", eps=0.001).result
    assert (result["outcome"], result["diagnostics"]) == ("failure", ["below_one_level"])
    assert result["queries"] == {"forward": 3, "backward": 0}


def test_target_equal_to_the_label_is_refused_before_anything_runs(png: bytes) -> None:
    with pytest.raises(InvalidParameter) as caught:
        run_file(png, "attack", model=MODEL, method="pgd", parameters={}, label="Bag", target="8")
    assert caught.value.field == "target"
