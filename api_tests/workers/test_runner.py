"""One job in a runner: each way in which it can end, and what is written then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api_tests.support import fake_worker
from api_tests.support.full_disk import full_disk, large_png
from api_tests.support.in_process_worker import InProcessWorker
from api_tests.support.wait import wait_until
from touchstone.errors import LedgerUnavailable
from touchstone.ledger.records import Submission
from touchstone.settings import Settings
from touchstone.supervisor import valkey as embedded_valkey
from workers import runner as runner_module
from workers.claimed_job import ClaimedJob


@pytest.fixture
def worker(settings: Settings, submission: Submission) -> Iterator[InProcessWorker]:
    worker = InProcessWorker(settings.model_copy(update={"lease": 2.0}), submission, str(settings.redis_url))
    worker.keeper.start()
    yield worker
    worker.close()


def test_job_succeeds_with_its_result_files_and_timings(worker: InProcessWorker) -> None:
    job = worker.run(steps=3)
    assert (job.status, job.attempts, job.result) == ("succeeded", 1, {"read": 3})
    assert job.progress.done == job.progress.total == 3, "the last report is stored, however fast the job was"
    file = job.artifacts["adversarial.png"]
    assert worker.blobs.get(file.digest) == b"an image of PNG"
    assert (file.media_type, file.size) == ("image/png", 15)
    assert job.timings is not None
    assert (job.timings.compute, 0 <= job.timings.queued < 5, 0 < job.timings.write < 5) == (1.0, True, True)


def test_job_with_large_parameters_runs_with_all_of_them(worker: InProcessWorker) -> None:
    job = worker.run(steps=3, padding="x" * 20_000)
    assert (job.status, job.result, job.progress.total) == ("succeeded", {"read": 3}, 3)
    assert len(job.submission.parameters["padding"]) == 20_000


def test_large_result_is_stored_as_a_blob_and_read_as_it_was(worker: InProcessWorker) -> None:
    names = ["a class"] * 5000
    run = worker.runner.run
    larger = replace(
        worker.runner,
        run=lambda *given, **options: replace(run(*given, **options), result={"names": names}),
    )
    job = worker.accept()
    larger(job)
    assert worker.ledger.read(job).result == {"names": names}
    stored = worker.ledger.client.hgetall(f"ts:job:{job}")
    assert sum(map(len, stored.values())) < 5000


def test_rerun_result_tells_whether_the_bytes_agree(worker: InProcessWorker) -> None:
    first = worker.run()

    def rerun(digest: str) -> Any:
        image = worker.submission.image.model_copy(update={"digest": digest})
        changes = {"rerun_of": first.id, "image": image, "parameters": {"steps": 1}}
        job = worker.ledger.accept(worker.submission.model_copy(update=changes))[0].id
        worker.runner(job)
        result = worker.ledger.read(job).result
        assert result is not None
        return result["rerun"]

    assert rerun(first.submission.image.digest) == {"of": first.id, "agrees": True}
    assert rerun(worker.blobs.put(b"another")) == {"of": first.id, "agrees": False}
    worker.ledger.delete(first.id)
    assert rerun(first.submission.image.digest) == {"of": first.id, "agrees": None}


def test_failure_of_the_run_becomes_the_error_of_the_job(worker: InProcessWorker) -> None:
    job = worker.run(then="fail")
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.model_dump() == {
        "code": "non_finite_output",
        "detail": "The model answered NaN.",
        "extra": {"field": "image", "rows": 1},
    }


@pytest.mark.parametrize("then", ["starve", "starve as it loads"])
def test_job_without_memory_is_tried_alone_and_fails_after_three_attempts_there(
    worker: InProcessWorker, then: str
) -> None:
    job = worker.run(then=then)
    assert (job.status, job.losses, job.strikes) == ("queued", 3, 0)
    for strikes in (1, 2):
        worker.runner.run_suspect(3)
        again = worker.ledger.read(job.id)
        assert (again.status, again.strikes) == ("queued", strikes)
    worker.runner.run_suspect(3)
    last = worker.ledger.read(job.id)
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 4, "out_of_memory")


def test_job_is_retried_and_fails_after_three_attempts_on_os_errors(worker: InProcessWorker) -> None:
    last = worker.run_three_attempts(worker.accept(then="too many files"))
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "internal_error")


@pytest.mark.parametrize("then", ["break", "nan"])
def test_unexpected_error_fails_the_job_without_internal_details(
    worker: InProcessWorker,
    then: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = worker.run(then=then)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "internal_error")
    assert "swordfish" not in job.model_dump_json()
    assert "Traceback" in "".join((*capfd.readouterr(), caplog.text)), "logged wherever logs go"


def test_job_with_missing_image_fails(worker: InProcessWorker) -> None:
    gone = worker.submission.image.model_copy(update={"digest": "sha256:" + "0" * 64})
    job, _ = worker.ledger.accept(worker.submission.model_copy(update={"image": gone}))
    worker.runner(job.id)
    error = worker.ledger.read(job.id).error
    assert error is not None
    assert error.code == "unknown_artifact"


def test_dispatch_of_an_ended_or_unknown_job_does_nothing(worker: InProcessWorker) -> None:
    job = worker.run()
    worker.runner(job.id)
    worker.runner("no such job")
    assert worker.ledger.read(job.id) == job


def test_running_job_ends_soon_after_a_cancel(worker: InProcessWorker) -> None:
    job = worker.start(steps=10_000)
    worker.ledger.cancel(job)
    wait_until(lambda: worker.ledger.read(job).status == "canceled", seconds=20)
    assert worker.engine.running == 0


def test_overdue_job_fails_even_if_its_run_ignores_the_deadline(worker: InProcessWorker) -> None:
    job = worker.start(steps=10_000, deadline=0.1)
    wait_until(lambda: worker.ledger.read(job).status == "failed")
    error = worker.ledger.read(job).error
    assert error is not None
    assert error.code == "deadline_exceeded"


def test_lease_of_a_long_job_is_renewed(worker: InProcessWorker) -> None:
    job = worker.start(steps=int(1.5 * worker.settings.lease / fake_worker.STEP_SECONDS))
    while worker.ledger.read(job).status == "running":
        assert worker.ledger.reap().lost == ()
        time.sleep(0.05)
    assert worker.ledger.read(job).status == "succeeded"


def test_progress_is_written_a_few_times_a_second(worker: InProcessWorker) -> None:
    begun = time.monotonic()
    job = worker.run(steps=60)
    steps = [event.data["done"] for event in worker.ledger.events(job.id) if event.type == "progress"]
    assert steps[-1] == 60
    assert steps == sorted(steps)
    assert 2 <= len(steps) <= 2 + 5 * (time.monotonic() - begun)


def test_run_ends_and_writes_nothing_after_its_claim_is_lost(worker: InProcessWorker) -> None:
    job = worker.start(steps=10_000)
    worker.expire_lease(job)
    taken = worker.ledger.claim(job, "w2", level=3)
    wait_until(lambda: worker.engine.running == 0)
    assert worker.ledger.read(job) == taken


@pytest.mark.parametrize("order", [1, -1])
def test_job_claimed_again_by_the_same_worker_stops_only_the_earlier_claim(
    worker: InProcessWorker, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    job = worker.accept()
    claims = []
    for level in (0, 3):
        claimed = worker.ledger.claim(job, "w1", level=level)
        assert claimed
        claims.append(ClaimedJob(claimed))
        if len(claims) == 1:
            worker.expire_lease(job)
    monkeypatch.setattr(worker.keeper, "_list_claimed", lambda: claims[::order])
    worker.keeper.renew()
    assert [each.stop_reason for each in claims] == ["lost", None]


def test_stopping_worker_releases_its_jobs_and_takes_no_more(worker: InProcessWorker) -> None:
    worker.ledger.workers.heartbeat("w1", {})
    job = worker.start(steps=10_000)
    waiting = worker.accept()
    worker.keeper.stopping = True
    wait_until(lambda: worker.ledger.read(job).status == "queued")
    assert worker.ledger.read(job).attempts == 0
    worker.runner(waiting)
    assert worker.ledger.read(waiting).claims == 0, "a stopping worker claims no more jobs"
    wait_until(lambda: worker.ledger.workers.alive() == [])
    worker.keeper._beat()
    assert worker.ledger.workers.alive() == [], "a stopping worker sends no heartbeat"
    assert worker.exits == []


def test_job_is_requeued_when_its_engine_stops(worker: InProcessWorker) -> None:
    job = worker.run(then="stop")
    assert (job.status, job.attempts, job.claims) == ("queued", 0, 1)


def test_hanging_job_is_released_when_the_worker_stops(
    worker: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    job = worker.start(then="hang")
    worker.keeper.stopping = True
    wait_until(lambda: worker.exits)
    assert worker.exits[0] == 0
    assert worker.ledger.read(job).status == "queued"


def test_stopping_worker_tries_an_unavailable_ledger_only_once(
    worker: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    for count in (1, 2):
        worker.start(then="hang")
        wait_until(lambda count=count: worker.engine.running == count)  # type: ignore[misc]
    released: list[str] = []
    exits: list[int] = []

    def fail(job: str, _claim: int) -> bool:
        released.append(job)
        raise LedgerUnavailable("gone")

    def end(code: int) -> None:
        exits.append(code)
        worker.keeper._closed.set()

    monkeypatch.setattr(worker.ledger, "release", fail)
    monkeypatch.setattr(worker.keeper, "_give_up", end)
    worker.keeper.stopping = True
    wait_until(lambda: exits == [0])
    assert len(released) == 1


def test_hung_engine_loses_its_jobs_and_ends_the_process(settings: Settings, submission: Submission) -> None:
    short = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    worker = InProcessWorker(short, submission, str(settings.redis_url))
    worker.keeper.start()
    other, job = worker.start(then="wait"), worker.start(then="hang")
    wait_until(lambda: worker.exits == [1])
    assert [worker.ledger.read(each).status for each in (job, other)] == ["queued", "queued"]
    assert [worker.ledger.read(each).losses for each in (job, other)] == [3, 0], "it alone was in the step"
    assert worker.ledger.read(other).attempts == 0
    worker.close()
    assert worker.ledger.read(job).status == "queued", "a job that ends too late writes nothing"


def test_leases_are_renewed_although_other_upkeep_raises(
    worker: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def fail() -> None:
        failures.append(len(failures))
        raise RuntimeError("no figures")

    monkeypatch.setattr(worker.engine, "probes", fail)
    job = worker.start(steps=10_000)
    due = worker.ledger.client.zscore("ts:leases", job)
    wait_until(lambda: len(failures) > 2)
    wait_until(lambda: worker.ledger.client.zscore("ts:leases", job) > due)
    worker.ledger.cancel(job)


def test_idle_engine_does_not_count_as_hung(settings: Settings, submission: Submission) -> None:
    worker = InProcessWorker(settings.model_copy(update={"hang": 1.0}), submission, str(settings.redis_url))
    worker.keeper.start()
    time.sleep(1.5)
    assert worker.exits == []
    assert worker.run().status == "succeeded"
    worker.close()


@pytest.mark.parametrize("rerun", [False, True])
def test_finished_work_is_written_once_the_ledger_is_back(
    tmp_path_factory: pytest.TempPathFactory, submission: Submission, rerun: bool
) -> None:
    home = tmp_path_factory.mktemp("v")
    valkey = embedded_valkey.start(home)
    worker = InProcessWorker(Settings(home=home), submission, valkey.url)
    job = worker.start(steps=10, rerun_of=worker.run().id if rerun else None)
    valkey.stop()
    wait_until(lambda: worker.engine.running == 0)
    again = embedded_valkey.start(home)
    wait_until(lambda: worker.ledger.read(job).status == "succeeded")
    worker.close()
    again.stop()


def test_claimed_job_keeps_its_first_stop_reason_and_stops_later_tasks(worker: InProcessWorker) -> None:
    claimed = ClaimedJob(worker.ledger.read(worker.accept()))
    early, late = fake_worker.FakeTask(), fake_worker.FakeTask()
    claimed.add_task(early)
    assert not early.canceled.is_set()
    claimed.request_stop("overdue")
    claimed.request_stop("stopping")
    claimed.add_task(late)
    assert claimed.stop_reason == "overdue"
    assert early.expired
    assert late.expired
    assert early.canceled.is_set()
    assert late.canceled.is_set()


def test_fake_worker_writes_a_diary(worker: InProcessWorker, tmp_path: Path) -> None:
    """The tests with real processes rely on it."""
    worker.run(diary=str(tmp_path / "diary"))
    assert (tmp_path / "diary").read_text() == "begin\nend\n"


def test_artifacts_are_stored_once_the_full_disk_has_space(worker: InProcessWorker) -> None:
    image = worker.submission.image
    assert image
    large = image.model_copy(update={"digest": worker.blobs.put(large_png())})
    worker.submission = worker.submission.model_copy(update={"image": large})
    with full_disk():
        job = worker.start()
        wait_until(lambda: worker.engine.running == 0)
        time.sleep(2 * runner_module.RETRY_SECONDS)
        assert worker.ledger.read(job).status == "running"
    wait_until(lambda: worker.ledger.read(job).status == "succeeded")


def test_job_fails_as_storage_full_after_three_attempts_on_a_full_disk(
    worker: InProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STORE_SECONDS", 0.1)
    image = worker.submission.image
    assert image
    large = image.model_copy(update={"digest": worker.blobs.put(large_png())})
    worker.submission = worker.submission.model_copy(update={"image": large})
    with full_disk():
        last = worker.run_three_attempts(worker.accept())
    assert last.error
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "storage_full")


def test_job_that_ignores_its_cancel_loses_its_lease(
    settings: Settings, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_worker.FakeEngine, "busy", False)  # the job waits for something else
    short = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    worker = InProcessWorker(short, submission, str(settings.redis_url))
    worker.keeper.start()
    try:
        job = worker.start(steps=0, then="hang")
        worker.ledger.cancel(job)
        wait_until(lambda: worker.ledger.read(job).status == "canceled")
        assert worker.exits == [], "other jobs of the worker go on"
    finally:
        worker.close()
