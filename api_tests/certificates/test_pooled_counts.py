"""Certificates between runner and ledger: what is kept of a count, and how such a job can end."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

import touchstone
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from service.submissions.continuation import _check_continuable
from touchstone.check import check
from touchstone.engine import Engine, SampleNoise, TorchOracle
from touchstone.errors import BatchDependent, Failure, JobConflict, NonFiniteOutput
from touchstone.evaluation import certificate_result
from touchstone.evaluation.certificate_result import pool_key
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.images import decode, encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ImageRef, Job, ModelRef, Submission
from touchstone.models.zoo import find_manifest
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.training.datasets import fashion_mnist_sample
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner

MODEL = "fashion-mnist-cnn"
PARAMETERS = {"sigma": 0.12, "n0": 100, "n": 1_000, "alpha": 0.001, "rule": "e_process"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[1]).save(buffer, "PNG")
    return encode(decode(buffer.getvalue()).pixels)


def build_submission(
    digest: str, *, method: str = "smoothing", seed: int = 0, **parameters: Any
) -> Submission:
    own = {**PARAMETERS, **parameters} if method == "smoothing" else parameters
    return Submission(
        kind="certificate",
        method=method,
        model=ModelRef(id=MODEL, digest=find_manifest(MODEL).digest),
        image=ImageRef(digest=digest, width=28, height=28, channels=1),
        parameters=own,
        seed=seed,
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    with engine.models.acquire(find_manifest(MODEL)):
        pass
    yield engine
    engine.stop()


UNREACHABLE_SAMPLES = 5_000_000
"""Samples that no test waits for."""


class Harness:
    """A runner on a real engine, whose runs know of no deadline: only the ledger does."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = open_blobs(settings)
        self.keeper = LeaseKeeper("w1", self.ledger, engine, settings, give_up=lambda _: None)

        def timeless(submission: Submission, png: bytes, **how: Any) -> JobOutcome:
            return run_job(submission, png, engine, **{**how, "deadline": None})

        self.runner = Runner(self.ledger, self.blobs, self.keeper, timeless, settings)
        self.digest = self.blobs.put(png())

    def start_job(self, **how: Any) -> tuple[str, threading.Thread]:
        job = self.ledger.accept(build_submission(self.digest, **how))[0].id
        thread = threading.Thread(target=self.runner, args=[job])
        thread.start()
        return job, thread

    def run_job(self, **how: Any) -> Job:
        job, thread = self.start_job(**how)
        thread.join()
        return self.ledger.read(job)

    def run_past_deadline(self, *, after: int = 200, n: int = UNREACHABLE_SAMPLES, **how: Any) -> Job:
        """A job whose deadline passes once so many samples were drawn."""
        job, thread = self.start_job(n=n, **how)
        wait_until(lambda: self.ledger.read(job).progress.done > after)
        self.ledger.client.hset(f"ts:job:{job}", "due", 1)
        thread.join()
        return self.ledger.read(job)


@pytest.fixture
def harness(settings: Settings, engine: Engine) -> Iterator[Harness]:
    harness = Harness(settings, engine)
    harness.keeper.start()
    yield harness
    harness.keeper.close()
    harness.ledger.close()


def build_counts(seed: int, n: int) -> dict[str, Any]:
    return {"seed": seed, "n": n, "votes": {"1": n}}


def test_pool_keeps_the_largest_count_of_its_first_seed(ledger: Ledger) -> None:
    assert ledger.count_pools.read("p", 7) == ledger.count_pools.read("p", 8)
    assert (ledger.count_pools.read("p", 8).seed, ledger.count_pools.read("p", 8).counts) == (7, None)
    assert ledger.count_pools.extend("p", build_counts(7, 300)).counts == build_counts(7, 300)
    assert ledger.count_pools.extend("p", build_counts(7, 100)).counts == build_counts(7, 300)
    assert ledger.count_pools.extend("p", build_counts(8, 900)).counts == build_counts(7, 300), (
        "of other samples"
    )
    assert ledger.count_pools.extend("p", build_counts(7, 1_000)).counts == build_counts(7, 1_000)
    assert ledger.count_pools.read("q", 2**63 - 1).seed == 2**63 - 1


def test_pool_expires_after_30_days(ledger: Ledger) -> None:
    ledger.count_pools.extend("p", build_counts(1, 100))
    days = float(ledger.client.pttl("ts:counts:p")) / 86_400_000  # type: ignore[arg-type]
    assert 29.9 < days <= 30


def test_pool_is_shared_only_by_certificates_that_draw_the_same_samples() -> None:
    first = pool_key(build_submission("sha256:1"))
    assert first is not None
    assert pool_key(build_submission("sha256:1", seed=5, n=50, target_radius=0.1, tolerance=0.1)) == first
    others = [pool_key(build_submission("sha256:2")), pool_key(build_submission("sha256:1", sigma=0.2))]
    others += [
        pool_key(build_submission("sha256:1", alpha=0.01)),
        pool_key(build_submission("sha256:1", n0=50)),
    ]
    assert len({first, *others}) == 5
    assert pool_key(build_submission("sha256:1", rule="fixed")) is None
    assert pool_key(build_submission("sha256:1", method="pixeldp")) is None
    assert pool_key(build_submission("sha256:1").model_copy(update={"rerun_of": "x"})) is None


def test_overdue_certificate_succeeds_with_the_radius_proved_so_far(harness: Harness) -> None:
    job = harness.run_past_deadline(after=2_000)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert job.result["stopped_by"] == "deadline_exceeded"
    assert job.result["radius"] > 0
    assert all(one.agrees for one in check(job.result))


@pytest.mark.parametrize("how", [{"method": "pixeldp"}, {"rule": "fixed"}])
def test_overdue_certificate_of_a_single_look_succeeds_with_radius_zero(
    harness: Harness, how: dict[str, Any]
) -> None:
    job = harness.run_past_deadline(**how)
    assert job.status == "succeeded"
    assert job.result is not None
    assert (job.result["stopped_by"], job.result["radius"]) == ("deadline_exceeded", 0)
    assert "before" in job.result["abstain_reason"]
    assert all(one.agrees for one in check(job.result))


@pytest.mark.parametrize(
    ("before", "after", "agrees"),
    [
        ({"n": 300}, {}, True),
        ({"n": UNREACHABLE_SAMPLES}, {"n": 200}, None),
        ({"n": 300}, {"n": 200}, False),
    ],
)
def test_rerun_distinguishes_chance_from_a_real_difference(
    harness: Harness, before: dict[str, Any], after: dict[str, Any], agrees: bool | None
) -> None:
    go = harness.run_past_deadline if before["n"] == UNREACHABLE_SAMPLES else harness.run_job
    first = go(rule="group_sequential", sigma=0.2, **before)
    parameters = {**first.submission.parameters, **after}  # as if the same had come out otherwise
    again = first.submission.model_copy(update={"rerun_of": first.id, "parameters": parameters})
    job = harness.ledger.accept(again)[0].id
    harness.runner(job)
    result = harness.ledger.read(job).result
    assert result is not None
    assert result["rerun"]["agrees"] is agrees


def test_rerun_of_another_stream_says_that_it_cannot_be_compared(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as former:
        former.setattr(SampleNoise, "name", "another")
        first = harness.run_job(rule="group_sequential", sigma=0.2, n=300)
    assert first.result is not None
    assert first.result["sampling"]["stream"] == "another"
    for seed, agrees in ((1, None), (0, True)):  # a different seed stands for different noise
        again = first.submission.model_copy(update={"rerun_of": first.id, "seed": seed})
        job = harness.ledger.accept(again)[0].id
        harness.runner(job)
        result = harness.ledger.read(job).result
        assert result is not None
        assert result["rerun"]["agrees"] is agrees
        assert ("another stream" in result["rerun"].get("reason", "")) is (agrees is None)


def test_samples_of_another_stream_are_not_pooled(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as former:
        former.setattr(SampleNoise, "name", "another")
        former.setattr(certificate_result, "SAMPLE_STREAM", "another")
        first = harness.run_job(n=600)
    second = harness.run_job(n=300, seed=9)
    assert first.result is not None
    assert second.result is not None
    assert first.result["sampling"]["n_used"] == 600
    counted = second.result["sampling"]
    assert (counted["pooled"], counted["n_used"], counted["seed"]) == (0, 300, 9)


@pytest.mark.parametrize("stream", ["another", None])
def test_certificate_of_another_stream_is_not_continued(harness: Harness, stream: str | None) -> None:
    job = harness.run_job(n=300)
    assert job.result is not None
    _check_continuable(job)
    sampling = {name: value for name, value in job.result["sampling"].items() if name != "stream"}
    named = {} if stream is None else {"stream": stream}
    older = job.model_copy(update={"result": {**job.result, "sampling": {**sampling, **named}}})
    with pytest.raises(JobConflict, match="another stream"):
        _check_continuable(older)


@pytest.mark.parametrize("rule", ["group_sequential", "e_process"])
def test_canceled_certificate_keeps_its_result(harness: Harness, rule: str) -> None:
    job, thread = harness.start_job(n=UNREACHABLE_SAMPLES, rule=rule)
    wait_until(lambda: harness.ledger.read(job).progress.done > 500)
    harness.ledger.cancel(job)
    thread.join(TIMEOUT_SECONDS)
    ended = harness.ledger.read(job)
    assert (ended.status, ended.error) == ("canceled", None)
    assert ended.result is not None
    assert ended.result["stopped_by"] == "canceled"
    assert ended.result["sampling"]["n_used"] >= 100


def test_stopping_worker_releases_a_certificate_and_keeps_its_samples(harness: Harness) -> None:
    job, thread = harness.start_job(n=UNREACHABLE_SAMPLES)
    wait_until(lambda: harness.ledger.read(job).progress.done > 500)
    harness.keeper.stopping = True
    thread.join(TIMEOUT_SECONDS)
    assert (harness.ledger.read(job).status, harness.ledger.read(job).result) == ("queued", None)
    pool = pool_key(harness.ledger.read(job).submission)
    assert pool is not None
    kept = harness.ledger.count_pools.read(pool, 0).counts
    assert kept is not None
    assert kept["n"] >= 100


def test_cancel_before_finish_keeps_only_the_result_of_a_certificate(
    ledger: Ledger, submission: Submission
) -> None:
    kept = {}
    for kind in ("certificate", "attack"):
        for status in ("succeeded", "failed"):
            job = ledger.accept(submission.model_copy(update={"kind": kind}))[0].id
            claimed = ledger.claim(job, "w1")
            assert claimed is not None
            ledger.cancel(job)
            ledger.finish(job, claimed.claims, status=status, result={"radius": 1.0})  # type: ignore[arg-type]
            ended = ledger.read(job)
            assert ended.status == "canceled"
            kept[kind, status] = ended.result is not None
    assert [pair for pair, there in kept.items() if there] == [("certificate", "succeeded")]


class BatchDependentModel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = x.flatten(1).sum(1)
        return torch.stack([s - s.mean(), s.mean() - s, *[s * 0] * 8], 1)


class InfiniteLogits(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 10), torch.inf)


@pytest.mark.parametrize(
    ("module", "failure"), [(BatchDependentModel(), BatchDependent), (InfiniteLogits(), NonFiniteOutput)]
)
@pytest.mark.parametrize("method", ["smoothing", "pixeldp"])
def test_batch_dependent_or_non_finite_model_is_refused(
    module: torch.nn.Module, failure: type[Failure], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle: TorchOracle = touchstone.wrap(module).oracle
    engine = Engine("cpu")
    monkeypatch.setattr(engine.models, "_load", lambda _: (oracle, 0))
    with pytest.raises(failure):
        run_job(build_submission("sha256:1", method=method), png(), engine)
    engine.stop()
