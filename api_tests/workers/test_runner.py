"""One job between bell and ledger: each way in which it can end, and what is written then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api_tests.support import fake_worker
from api_tests.support.full_disk import full_disk, large_png
from api_tests.support.wait import wait_until
from touchstone.errors import LedgerUnavailable
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Submission
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs
from touchstone.supervisor import valkey as embedded
from workers import runner as module
from workers.claimed_job import ClaimedJob
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner


class InProcessWorker:
    """A runner and its keeper on a pretended engine, inside this process."""

    def __init__(self, settings: Settings, submission: Submission, url: str) -> None:
        self.settings = settings
        self.ledger = Ledger(url, settings)
        self.blobs: Blobs = open_blobs(settings)
        self.engine = fake_worker.FakeEngine()
        self.exits: list[int] = []
        self.keeper = LeaseKeeper("w1", self.ledger, self.engine, settings, give_up=self.exits.append)
        run = partial(fake_worker.run, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, run, settings)
        image = submission.image.model_copy(update={"digest": self.blobs.put(b"PNG")})
        self.submission = submission.model_copy(update={"image": image})
        self.threads: list[threading.Thread] = []

    def accept(self, *, deadline: float | None = None, rerun_of: str | None = None, **parameters: Any) -> str:
        changes = {"parameters": {"steps": 1, **parameters}, "deadline": deadline, "rerun_of": rerun_of}
        return self.ledger.accept(self.submission.model_copy(update=changes))[0].id

    def run(self, **parameters: Any) -> Job:
        job = self.accept(**parameters)
        self.runner(job)
        return self.ledger.read(job)

    def start(self, **parameters: Any) -> str:
        """Run a job on a thread; returns when it has begun."""
        job = self.accept(**parameters)
        self.threads.append(threading.Thread(target=self.runner, args=[job]))
        self.threads[-1].start()
        wait_until(lambda: self.engine.running > 0)
        return job

    def run_three_attempts(self, job: str) -> Job:
        """Run a job that each attempt but the last leaves to its lease."""
        for attempt in (1, 2):
            self.runner(job)
            assert (self.ledger.read(job).status, self.ledger.read(job).attempts) == ("running", attempt)
            self.expire_lease(job)
        self.runner(job)
        return self.ledger.read(job)

    def expire_lease(self, job: str) -> None:
        """Have the lease of a job run out."""
        self.ledger.client.zadd("ts:leases", {job: 1})
        assert self.ledger.reap().lost == (job,)

    def close(self) -> None:
        self.engine.release_hang.set()
        for thread in self.threads:
            thread.join()
        self.keeper.close()
        self.ledger.close()


@pytest.fixture
def bench(settings: Settings, submission: Submission) -> Iterator[InProcessWorker]:
    bench = InProcessWorker(settings.model_copy(update={"lease": 2.0}), submission, str(settings.redis_url))
    bench.keeper.start()
    yield bench
    bench.close()


def test_job_succeeds_with_its_result_files_and_timings(bench: InProcessWorker) -> None:
    job = bench.run(steps=3)
    assert (job.status, job.attempts, job.result) == ("succeeded", 1, {"read": 3})
    assert job.progress.done == job.progress.total == 3, "the last report counts, however fast the job was"
    file = job.artifacts["adversarial.png"]
    assert bench.blobs.get(file.digest) == b"an image of PNG"
    assert (file.media_type, file.size) == ("image/png", 15)
    assert job.timings is not None
    assert (job.timings.compute, 0 <= job.timings.queued < 5, 0 < job.timings.write < 5) == (1.0, True, True)


def test_rerun_result_tells_whether_the_bytes_agree(bench: InProcessWorker) -> None:
    first = bench.run()

    def again(digest: str) -> Any:
        image = bench.submission.image.model_copy(update={"digest": digest})
        changes = {"rerun_of": first.id, "image": image, "parameters": {"steps": 1}}
        job = bench.ledger.accept(bench.submission.model_copy(update=changes))[0].id
        bench.runner(job)
        result = bench.ledger.read(job).result
        assert result is not None
        return result["rerun"]

    assert again(first.submission.image.digest) == {"of": first.id, "agrees": True}
    assert again(bench.blobs.put(b"another")) == {"of": first.id, "agrees": False}
    bench.ledger.delete(first.id)
    assert again(first.submission.image.digest) == {"of": first.id, "agrees": None}


def test_failure_of_the_run_becomes_the_error_of_the_job(bench: InProcessWorker) -> None:
    job = bench.run(then="fail")
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.model_dump() == {
        "code": "non_finite_output",
        "detail": "The model answered NaN.",
        "extra": {"field": "image", "rows": 1},
    }


@pytest.mark.parametrize("then", ["starve", "starve as it loads"])
def test_job_is_retried_and_fails_after_three_attempts_without_memory(
    bench: InProcessWorker, then: str
) -> None:
    last = bench.run_three_attempts(bench.accept(then=then))
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "out_of_memory")


def test_job_is_retried_and_fails_after_three_attempts_on_os_errors(bench: InProcessWorker) -> None:
    last = bench.run_three_attempts(bench.accept(then="too many files"))
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "internal_error")


@pytest.mark.parametrize("then", ["break", "nan"])
def test_unexpected_error_fails_the_job_without_internal_details(
    bench: InProcessWorker, then: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = bench.run(then=then)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "internal_error")
    assert "swordfish" not in job.model_dump_json()
    assert "Traceback" in "".join(capfd.readouterr())


def test_job_with_missing_image_fails(bench: InProcessWorker) -> None:
    gone = bench.submission.image.model_copy(update={"digest": "sha256:" + "0" * 64})
    job, _ = bench.ledger.accept(bench.submission.model_copy(update={"image": gone}))
    bench.runner(job.id)
    error = bench.ledger.read(job.id).error
    assert error is not None
    assert error.code == "unknown_artifact"


def test_dispatch_of_an_ended_or_unknown_job_does_nothing(bench: InProcessWorker) -> None:
    job = bench.run()
    bench.runner(job.id)
    bench.runner("no such job")
    assert bench.ledger.read(job.id) == job


def test_running_job_ends_soon_after_a_cancel(bench: InProcessWorker) -> None:
    job = bench.start(steps=10_000)
    bench.ledger.cancel(job)
    wait_until(lambda: bench.ledger.read(job).status == "canceled", seconds=20)
    assert bench.engine.running == 0


def test_overdue_job_fails_even_if_its_run_ignores_the_deadline(bench: InProcessWorker) -> None:
    job = bench.start(steps=10_000, deadline=0.1)
    wait_until(lambda: bench.ledger.read(job).status == "failed")
    error = bench.ledger.read(job).error
    assert error is not None
    assert error.code == "deadline_exceeded"


def test_lease_of_a_long_job_is_renewed(bench: InProcessWorker) -> None:
    job = bench.start(steps=int(1.5 * bench.settings.lease / fake_worker.STEP_SECONDS))
    while bench.ledger.read(job).status == "running":
        assert bench.ledger.reap().lost == ()
        time.sleep(0.05)
    assert bench.ledger.read(job).status == "succeeded"


def test_progress_is_written_a_few_times_a_second(bench: InProcessWorker) -> None:
    begun = time.monotonic()
    job = bench.run(steps=60)
    told = [event.data["done"] for event in bench.ledger.events(job.id) if event.type == "progress"]
    assert told[-1] == 60
    assert told == sorted(told)
    assert 2 <= len(told) <= 2 + 5 * (time.monotonic() - begun)


def test_run_ends_and_writes_nothing_after_its_claim_is_lost(bench: InProcessWorker) -> None:
    job = bench.start(steps=10_000)
    bench.expire_lease(job)
    taken = bench.ledger.claim(job, "w2")
    wait_until(lambda: bench.engine.running == 0)
    assert bench.ledger.read(job) == taken


@pytest.mark.parametrize("turn", [1, -1])
def test_job_claimed_again_by_the_same_worker_stops_only_the_earlier_claim(
    bench: InProcessWorker, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    job = bench.accept()
    held = []
    for _ in range(2):
        claimed = bench.ledger.claim(job, "w1")
        assert claimed
        held.append(ClaimedJob(claimed))
        if len(held) == 1:
            bench.expire_lease(job)
    monkeypatch.setattr(bench.keeper, "_list_claimed", lambda: held[::turn])
    bench.keeper.renew()
    assert [each.reason for each in held] == ["lost", None]


def test_stopping_worker_releases_its_jobs_and_takes_no_more(bench: InProcessWorker) -> None:
    bench.ledger.heartbeat("w1", {})
    job = bench.start(steps=10_000)
    waiting = bench.accept()
    bench.keeper.stopping = True
    wait_until(lambda: bench.ledger.read(job).status == "queued")
    assert bench.ledger.read(job).attempts == 0
    bench.runner(waiting)
    assert bench.ledger.read(waiting).claims == 0, "a worker that stops takes nothing more"
    wait_until(lambda: bench.ledger.workers() == [])
    bench.keeper._beat()
    assert bench.ledger.workers() == [], "a worker that stops gives no sign of life"
    assert bench.exits == []


def test_job_is_requeued_when_its_engine_stops(bench: InProcessWorker) -> None:
    job = bench.run(then="stop")
    assert (job.status, job.attempts, job.claims) == ("queued", 0, 1)


def test_hanging_job_is_released_when_the_worker_stops(
    bench: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    job = bench.start(then="hang")
    bench.keeper.stopping = True
    wait_until(lambda: bench.exits)
    assert bench.exits[0] == 0
    assert bench.ledger.read(job).status == "queued"


def test_stopping_worker_tries_an_unavailable_ledger_only_once(
    bench: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    for count in (1, 2):
        bench.start(then="hang")
        wait_until(lambda count=count: bench.engine.running == count)  # type: ignore[misc]
    asked: list[str] = []
    exits: list[int] = []

    def gone(job: str, _claim: int) -> bool:
        asked.append(job)
        raise LedgerUnavailable("gone")

    def end(code: int) -> None:
        exits.append(code)
        bench.keeper._closed.set()

    monkeypatch.setattr(bench.ledger, "release", gone)
    monkeypatch.setattr(bench.keeper, "_give_up", end)
    bench.keeper.stopping = True
    wait_until(lambda: exits == [0])
    assert len(asked) == 1


def test_hung_engine_loses_its_jobs_and_ends_the_process(settings: Settings, submission: Submission) -> None:
    hasty = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    bench = InProcessWorker(hasty, submission, str(settings.redis_url))
    bench.keeper.start()
    job = bench.start(then="hang")
    wait_until(lambda: bench.exits == [1])
    wait_until(lambda: bench.ledger.reap().lost == (job,))
    assert bench.ledger.read(job).status == "queued"
    bench.close()
    assert bench.ledger.read(job).status == "queued", "what ends too late writes nothing"


def test_leases_are_renewed_although_other_upkeep_raises(
    bench: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stumbles: list[int] = []

    def stumble() -> None:
        stumbles.append(len(stumbles))
        raise RuntimeError("no figures")

    monkeypatch.setattr(bench.engine, "probes", stumble)
    job = bench.start(steps=10_000)
    due = bench.ledger.client.zscore("ts:leases", job)
    wait_until(lambda: len(stumbles) > 2)
    wait_until(lambda: bench.ledger.client.zscore("ts:leases", job) > due)
    bench.ledger.cancel(job)


def test_idle_engine_does_not_count_as_hung(settings: Settings, submission: Submission) -> None:
    bench = InProcessWorker(settings.model_copy(update={"hang": 1.0}), submission, str(settings.redis_url))
    bench.keeper.start()
    time.sleep(1.5)
    assert bench.exits == []
    assert bench.run().status == "succeeded"
    bench.close()


@pytest.mark.parametrize("rerun", [False, True])
def test_finished_work_is_written_once_the_ledger_is_back(
    tmp_path_factory: pytest.TempPathFactory, submission: Submission, rerun: bool
) -> None:
    home = tmp_path_factory.mktemp("v")
    valkey = embedded.start(home)
    bench = InProcessWorker(Settings(home=home), submission, valkey.url)
    job = bench.start(steps=10, rerun_of=bench.run().id if rerun else None)
    valkey.stop()
    wait_until(lambda: bench.engine.running == 0)
    again = embedded.start(home)
    wait_until(lambda: bench.ledger.read(job).status == "succeeded")
    bench.close()
    again.stop()


def test_claimed_job_keeps_its_first_stop_reason_and_stops_later_tasks(bench: InProcessWorker) -> None:
    held = ClaimedJob(bench.ledger.read(bench.accept()))
    early, late = fake_worker.FakeTask(), fake_worker.FakeTask()
    held.add_task(early)
    assert not early.canceled.is_set()
    held.request_stop("overdue")
    held.request_stop("stopping")
    held.add_task(late)
    assert held.stop_reason == "overdue"
    assert early.expired
    assert late.expired
    assert early.canceled.is_set()
    assert late.canceled.is_set()


def test_fake_worker_writes_a_diary(bench: InProcessWorker, tmp_path: Path) -> None:
    """The tests with real processes count on it."""
    bench.run(diary=str(tmp_path / "diary"))
    assert (tmp_path / "diary").read_text() == "begin\nend\n"


def test_artifacts_are_stored_once_the_full_disk_has_space(bench: InProcessWorker) -> None:
    image = bench.submission.image
    assert image
    large = image.model_copy(update={"digest": bench.blobs.put(large_png())})
    bench.submission = bench.submission.model_copy(update={"image": large})
    with full_disk():
        job = bench.start()
        wait_until(lambda: bench.engine.running == 0)
        time.sleep(2 * module.RETRY_SECONDS)
        assert bench.ledger.read(job).status == "running"
    wait_until(lambda: bench.ledger.read(job).status == "succeeded")


def test_job_fails_as_storage_full_after_three_attempts_on_a_full_disk(
    bench: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_SECONDS", 0.1)
    image = bench.submission.image
    assert image
    large = image.model_copy(update={"digest": bench.blobs.put(large_png())})
    bench.submission = bench.submission.model_copy(update={"image": large})
    with full_disk():
        last = bench.run_three_attempts(bench.accept())
    assert last.error
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "storage_full")


def test_job_that_ignores_its_cancel_loses_its_lease(
    settings: Settings, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_worker.FakeEngine, "busy", False)  # whatever it waits for, it is not the engine
    hasty = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    bench = InProcessWorker(hasty, submission, str(settings.redis_url))
    bench.keeper.start()
    try:
        job = bench.start(steps=0, then="hang")
        bench.ledger.cancel(job)
        wait_until(lambda: bench.ledger.reap().lost == (job,))
        assert bench.ledger.read(job).status == "canceled"
        assert bench.exits == [], "it keeps nobody else from running"
    finally:
        bench.close()
