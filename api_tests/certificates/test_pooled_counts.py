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
from api_tests.support.wait import SECONDS, wait_until
from touchstone.check import check
from touchstone.engine import Engine, Oracle
from touchstone.errors import BatchDependent, Failure, NonFiniteOutput
from touchstone.evaluation.certificate_result import pool_of
from touchstone.evaluation.run import Finished, run
from touchstone.images import decode, encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import ImageRef, Job, ModelRef, Submission
from touchstone.models.zoo import manifest
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.training.datasets import fashion_mnist_sample
from workers.lease_keeper import Keeper
from workers.runner import Runner

MODEL = "fashion-mnist-cnn"
PARAMETERS = {"sigma": 0.12, "n0": 100, "n": 1_000, "alpha": 0.001, "rule": "e_process"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[1]).save(buffer, "PNG")
    return encode(decode(buffer.getvalue()).pixels)


def asked(digest: str, *, method: str = "smoothing", seed: int = 0, **parameters: Any) -> Submission:
    own = {**PARAMETERS, **parameters} if method == "smoothing" else parameters
    return Submission(
        kind="certificate",
        method=method,
        model=ModelRef(id=MODEL, digest=manifest(MODEL).digest),
        image=ImageRef(digest=digest, width=28, height=28, channels=1),
        parameters=own,
        seed=seed,
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    with engine.models.hold(manifest(MODEL)):
        pass
    yield engine
    engine.stop()


ENDLESS = 5_000_000
"""Samples that no test waits for."""


class Bench:
    """A runner on a real engine, whose runs know of no deadline: only the ledger does."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.blobs = open_blobs(settings)
        self.keeper = Keeper("w1", self.ledger, engine, settings, give_up=lambda _: None)

        def timeless(submission: Submission, png: bytes, **how: Any) -> Finished:
            return run(submission, png, engine, **{**how, "deadline": None})

        self.runner = Runner(self.ledger, self.blobs, self.keeper, timeless, settings)
        self.digest = self.blobs.put(png())

    def begin(self, **how: Any) -> tuple[str, threading.Thread]:
        job = self.ledger.accept(asked(self.digest, **how))[0].id
        thread = threading.Thread(target=self.runner, args=[job])
        thread.start()
        return job, thread

    def go(self, **how: Any) -> Job:
        job, thread = self.begin(**how)
        thread.join()
        return self.ledger.read(job)

    def cut_short(self, *, after: int = 200, n: int = ENDLESS, **how: Any) -> Job:
        """A job whose deadline passes once so many samples were drawn."""
        job, thread = self.begin(n=n, **how)
        wait_until(lambda: self.ledger.read(job).progress.done > after)
        self.ledger.client.hset(f"ts:job:{job}", "due", 1)
        thread.join()
        return self.ledger.read(job)


@pytest.fixture
def bench(settings: Settings, engine: Engine) -> Iterator[Bench]:
    bench = Bench(settings, engine)
    bench.keeper.start()
    yield bench
    bench.keeper.close()
    bench.ledger.close()


def counted(seed: int, n: int) -> dict[str, Any]:
    return {"seed": seed, "n": n, "votes": {"1": n}}


def test_a_pool_keeps_the_furthest_count_of_one_seed(ledger: Ledger) -> None:
    assert ledger.pooled("p", 7) == ledger.pooled("p", 8)
    assert (ledger.pooled("p", 8).seed, ledger.pooled("p", 8).counts) == (7, None)
    assert ledger.pool("p", counted(7, 300)).counts == counted(7, 300)
    assert ledger.pool("p", counted(7, 100)).counts == counted(7, 300)
    assert ledger.pool("p", counted(8, 900)).counts == counted(7, 300), "of other samples"
    assert ledger.pool("p", counted(7, 1_000)).counts == counted(7, 1_000)
    assert ledger.pooled("q", 2**63 - 1).seed == 2**63 - 1


def test_a_pool_is_forgotten_in_the_end(ledger: Ledger) -> None:
    ledger.pool("p", counted(1, 100))
    days = float(ledger.client.pttl("ts:counts:p")) / 86_400_000  # type: ignore[arg-type]
    assert 29.9 < days <= 30


def test_what_is_asked_of_what_makes_the_pool() -> None:
    first = pool_of(asked("sha256:1"))
    assert first is not None
    assert pool_of(asked("sha256:1", seed=5, n=50, target_radius=0.1, tolerance=0.1)) == first
    others = [pool_of(asked("sha256:2")), pool_of(asked("sha256:1", sigma=0.2))]
    others += [pool_of(asked("sha256:1", alpha=0.01)), pool_of(asked("sha256:1", n0=50))]
    assert len({first, *others}) == 5
    assert pool_of(asked("sha256:1", rule="fixed")) is None
    assert pool_of(asked("sha256:1", method="pixeldp")) is None
    assert pool_of(asked("sha256:1").model_copy(update={"rerun_of": "x"})) is None


def test_an_overdue_certificate_succeeds_with_what_it_proved(bench: Bench) -> None:
    job = bench.cut_short(after=2_000)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert job.result["stopped_by"] == "deadline_exceeded"
    assert job.result["radius"] > 0
    assert all(one.agrees for one in check(job.result))


@pytest.mark.parametrize("how", [{"method": "pixeldp"}, {"rule": "fixed"}])
def test_what_looks_only_once_has_proved_nothing_before(bench: Bench, how: dict[str, Any]) -> None:
    job = bench.cut_short(**how)
    assert job.status == "succeeded"
    assert job.result is not None
    assert (job.result["stopped_by"], job.result["radius"]) == ("deadline_exceeded", 0)
    assert "before" in job.result["abstain_reason"]
    assert all(one.agrees for one in check(job.result))


@pytest.mark.parametrize(
    ("before", "after", "agrees"),
    [
        ({"n": 300}, {}, True),
        ({"n": ENDLESS}, {"n": 200}, None),
        ({"n": 300}, {"n": 200}, False),
    ],
)
def test_a_rerun_tells_chance_from_difference(
    bench: Bench, before: dict[str, Any], after: dict[str, Any], agrees: bool | None
) -> None:
    go = bench.cut_short if before["n"] == ENDLESS else bench.go
    first = go(rule="group_sequential", sigma=0.2, **before)
    parameters = {**first.submission.parameters, **after}  # as if the same had come out otherwise
    again = first.submission.model_copy(update={"rerun_of": first.id, "parameters": parameters})
    job = bench.ledger.accept(again)[0].id
    bench.runner(job)
    result = bench.ledger.read(job).result
    assert result is not None
    assert result["rerun"]["agrees"] is agrees


@pytest.mark.parametrize("rule", ["group_sequential", "e_process"])
def test_a_canceled_certificate_keeps_its_result(bench: Bench, rule: str) -> None:
    job, thread = bench.begin(n=ENDLESS, rule=rule)
    wait_until(lambda: bench.ledger.read(job).progress.done > 500)
    bench.ledger.cancel(job)
    thread.join(SECONDS)
    ended = bench.ledger.read(job)
    assert (ended.status, ended.error) == ("canceled", None)
    assert ended.result is not None
    assert ended.result["stopped_by"] == "canceled"
    assert ended.result["sampling"]["n_used"] >= 100


def test_a_stopping_worker_gives_a_certificate_back_and_loses_no_sample(bench: Bench) -> None:
    job, thread = bench.begin(n=ENDLESS)
    wait_until(lambda: bench.ledger.read(job).progress.done > 500)
    bench.keeper.stopping = True
    thread.join(SECONDS)
    assert (bench.ledger.read(job).status, bench.ledger.read(job).result) == ("queued", None)
    pool = pool_of(bench.ledger.read(job).submission)
    assert pool is not None
    kept = bench.ledger.pooled(pool, 0).counts
    assert kept is not None
    assert kept["n"] >= 100


def test_a_cancel_that_comes_after_the_last_sample_keeps_the_result_too(
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


class Batchy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = x.flatten(1).sum(1)
        return torch.stack([s - s.mean(), s.mean() - s, *[s * 0] * 8], 1)


class Endless(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 10), torch.inf)


@pytest.mark.parametrize(("module", "failure"), [(Batchy(), BatchDependent), (Endless(), NonFiniteOutput)])
@pytest.mark.parametrize("method", ["smoothing", "pixeldp"])
def test_a_model_whose_votes_prove_nothing_is_refused(
    module: torch.nn.Module, failure: type[Failure], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle: Oracle = touchstone.wrap(module).oracle
    engine = Engine("cpu")
    monkeypatch.setattr(engine.models, "_load", lambda _: (oracle, 0))
    with pytest.raises(failure):
        run(asked("sha256:1", method=method), png(), engine)
    engine.stop()
