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
from workers.claimed_job import Held
from workers.lease_keeper import Keeper
from workers.runner import Runner


class Bench:
    """A runner and its keeper on a pretended engine, inside this process."""

    def __init__(self, settings: Settings, submission: Submission, url: str) -> None:
        self.settings = settings
        self.ledger = Ledger(url, settings)
        self.blobs: Blobs = open_blobs(settings)
        self.engine = fake_worker.Engine()
        self.exits: list[int] = []
        self.keeper = Keeper("w1", self.ledger, self.engine, settings, give_up=self.exits.append)
        run = partial(fake_worker.run, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, run, settings)
        image = submission.image.model_copy(update={"digest": self.blobs.put(b"PNG")})
        self.submission = submission.model_copy(update={"image": image})
        self.threads: list[threading.Thread] = []

    def accept(self, *, deadline: float | None = None, rerun_of: str | None = None, **parameters: Any) -> str:
        changes = {"parameters": {"steps": 1, **parameters}, "deadline": deadline, "rerun_of": rerun_of}
        return self.ledger.accept(self.submission.model_copy(update=changes))[0].id

    def go(self, **parameters: Any) -> Job:
        job = self.accept(**parameters)
        self.runner(job)
        return self.ledger.read(job)

    def begin(self, **parameters: Any) -> str:
        """Run a job on a thread; returns when it has begun."""
        job = self.accept(**parameters)
        self.threads.append(threading.Thread(target=self.runner, args=[job]))
        self.threads[-1].start()
        wait_until(lambda: self.engine.running > 0)
        return job

    def tried_three_times(self, job: str) -> Job:
        """Run a job that each attempt but the last leaves to its lease."""
        for attempt in (1, 2):
            self.runner(job)
            assert (self.ledger.read(job).status, self.ledger.read(job).attempts) == ("running", attempt)
            self.expire(job)
        self.runner(job)
        return self.ledger.read(job)

    def expire(self, job: str) -> None:
        """Have the lease of a job run out."""
        self.ledger.client.zadd("ts:leases", {job: 1})
        assert self.ledger.reap().lost == (job,)

    def finish(self) -> None:
        self.engine.go_on.set()
        for thread in self.threads:
            thread.join()
        self.keeper.close()
        self.ledger.close()


@pytest.fixture
def bench(settings: Settings, submission: Submission) -> Iterator[Bench]:
    bench = Bench(settings.model_copy(update={"lease": 2.0}), submission, str(settings.redis_url))
    bench.keeper.start()
    yield bench
    bench.finish()


def test_a_job_succeeds_with_its_result_files_and_times(bench: Bench) -> None:
    job = bench.go(steps=3)
    assert (job.status, job.attempts, job.result) == ("succeeded", 1, {"read": 3})
    assert job.progress.done == job.progress.total == 3, "the last report counts, however fast the job was"
    file = job.artifacts["adversarial.png"]
    assert bench.blobs.get(file.digest) == b"an image of PNG"
    assert (file.media_type, file.size) == ("image/png", 15)
    assert job.timings is not None
    assert (job.timings.compute, 0 <= job.timings.queued < 5, 0 < job.timings.write < 5) == (1.0, True, True)


def test_a_rerun_says_whether_it_agrees(bench: Bench) -> None:
    first = bench.go()

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


def test_a_failure_is_told_as_it_is(bench: Bench) -> None:
    job = bench.go(then="fail")
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.model_dump() == {
        "code": "non_finite_output",
        "detail": "The model answered NaN.",
        "extra": {"field": "image", "rows": 1},
    }


@pytest.mark.parametrize("then", ["starve", "starve as it loads"])
def test_a_job_is_tried_again_where_a_worker_has_no_memory_left(bench: Bench, then: str) -> None:
    last = bench.tried_three_times(bench.accept(then=then))
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "out_of_memory")


def test_a_job_is_tried_again_where_the_workers_files_fail_it(bench: Bench) -> None:
    last = bench.tried_three_times(bench.accept(then="too many files"))
    assert last.error is not None
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "internal_error")


@pytest.mark.parametrize("then", ["break", "nan"])
def test_a_fault_of_ours_is_told_without_internals(
    bench: Bench, then: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = bench.go(then=then)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "internal_error")
    assert "swordfish" not in job.model_dump_json()
    assert "Traceback" in "".join(capfd.readouterr())


def test_a_missing_image_fails_the_job(bench: Bench) -> None:
    gone = bench.submission.image.model_copy(update={"digest": "sha256:" + "0" * 64})
    job, _ = bench.ledger.accept(bench.submission.model_copy(update={"image": gone}))
    bench.runner(job.id)
    error = bench.ledger.read(job.id).error
    assert error is not None
    assert error.code == "unknown_artifact"


def test_a_bell_for_nothing_does_nothing(bench: Bench) -> None:
    job = bench.go()
    bench.runner(job.id)
    bench.runner("no such job")
    assert bench.ledger.read(job.id) == job


def test_a_canceled_job_ends_soon(bench: Bench) -> None:
    job = bench.begin(steps=10_000)
    bench.ledger.cancel(job)
    wait_until(lambda: bench.ledger.read(job).status == "canceled", seconds=20)
    assert bench.engine.running == 0


def test_an_overdue_job_fails_even_if_its_run_forgets_the_time(bench: Bench) -> None:
    job = bench.begin(steps=10_000, deadline=0.1)
    wait_until(lambda: bench.ledger.read(job).status == "failed")
    error = bench.ledger.read(job).error
    assert error is not None
    assert error.code == "deadline_exceeded"


def test_a_long_job_keeps_its_lease(bench: Bench) -> None:
    job = bench.begin(steps=int(1.5 * bench.settings.lease / fake_worker.STEP_SECONDS))
    while bench.ledger.read(job).status == "running":
        assert bench.ledger.reap().lost == ()
        time.sleep(0.05)
    assert bench.ledger.read(job).status == "succeeded"


def test_reports_are_passed_on_a_few_times_a_second(bench: Bench) -> None:
    begun = time.monotonic()
    job = bench.go(steps=60)
    told = [event.data["done"] for event in bench.ledger.events(job.id) if event.type == "progress"]
    assert told[-1] == 60
    assert told == sorted(told)
    assert 2 <= len(told) <= 2 + 5 * (time.monotonic() - begun)


def test_a_lost_claim_ends_the_run_and_writes_nothing(bench: Bench) -> None:
    job = bench.begin(steps=10_000)
    bench.expire(job)
    taken = bench.ledger.claim(job, "w2")
    wait_until(lambda: bench.engine.running == 0)
    assert bench.ledger.read(job) == taken


@pytest.mark.parametrize("turn", [1, -1])
def test_a_job_that_was_claimed_here_again_is_lost_to_who_had_it_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    job = bench.accept()
    held = []
    for _ in range(2):
        claimed = bench.ledger.claim(job, "w1")
        assert claimed
        held.append(Held(claimed))
        if len(held) == 1:
            bench.expire(job)
    monkeypatch.setattr(bench.keeper, "_all", lambda: held[::turn])
    bench.keeper.renew()
    assert [each.reason for each in held] == ["lost", None]


def test_a_stopping_worker_gives_its_jobs_back(bench: Bench) -> None:
    bench.ledger.beat("w1", {})
    job = bench.begin(steps=10_000)
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


def test_a_job_whose_engine_was_stopped_waits_again(bench: Bench) -> None:
    job = bench.go(then="stop")
    assert (job.status, job.attempts, job.claims) == ("queued", 0, 1)


def test_a_job_that_does_not_stop_goes_back_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    job = bench.begin(then="hang")
    bench.keeper.stopping = True
    wait_until(lambda: bench.exits)
    assert bench.exits[0] == 0
    assert bench.ledger.read(job).status == "queued"


def test_a_worker_that_stops_waits_once_for_a_ledger_that_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease_keeper.GRACE_SECONDS", 0.3)
    for count in (1, 2):
        bench.begin(then="hang")
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


def test_a_hung_engine_loses_its_jobs_and_the_process(settings: Settings, submission: Submission) -> None:
    hasty = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    bench = Bench(hasty, submission, str(settings.redis_url))
    bench.keeper.start()
    job = bench.begin(then="hang")
    wait_until(lambda: bench.exits == [1])
    wait_until(lambda: bench.ledger.reap().lost == (job,))
    assert bench.ledger.read(job).status == "queued"
    bench.finish()
    assert bench.ledger.read(job).status == "queued", "what ends too late writes nothing"


def test_leases_are_renewed_whatever_else_goes_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stumbles: list[int] = []

    def stumble() -> None:
        stumbles.append(len(stumbles))
        raise RuntimeError("no figures")

    monkeypatch.setattr(bench.engine, "probes", stumble)
    job = bench.begin(steps=10_000)
    due = bench.ledger.client.zscore("ts:leases", job)
    wait_until(lambda: len(stumbles) > 2)
    wait_until(lambda: bench.ledger.client.zscore("ts:leases", job) > due)
    bench.ledger.cancel(job)


def test_an_idle_engine_does_not_hang(settings: Settings, submission: Submission) -> None:
    bench = Bench(settings.model_copy(update={"hang": 1.0}), submission, str(settings.redis_url))
    bench.keeper.start()
    time.sleep(1.5)
    assert bench.exits == []
    assert bench.go().status == "succeeded"
    bench.finish()


@pytest.mark.parametrize("rerun", [False, True])
def test_work_that_is_done_waits_for_the_ledger_to_return(
    tmp_path_factory: pytest.TempPathFactory, submission: Submission, rerun: bool
) -> None:
    home = tmp_path_factory.mktemp("v")
    valkey = embedded.start(home)
    bench = Bench(Settings(home=home), submission, valkey.url)
    job = bench.begin(steps=10, rerun_of=bench.go().id if rerun else None)
    valkey.stop()
    wait_until(lambda: bench.engine.running == 0)
    again = embedded.start(home)
    wait_until(lambda: bench.ledger.read(job).status == "succeeded")
    bench.finish()
    again.stop()


def test_a_job_keeps_its_first_reason_and_ends_tasks_that_start_later(bench: Bench) -> None:
    held = Held(bench.ledger.read(bench.accept()))
    early, late = fake_worker.Task(), fake_worker.Task()
    held.started(early)
    assert not early.canceled.is_set()
    held.end("overdue")
    held.end("stopping")
    held.started(late)
    assert held.reason == "overdue"
    assert early.expired
    assert late.expired
    assert early.canceled.is_set()
    assert late.canceled.is_set()


def test_the_pretence_leaves_a_diary(bench: Bench, tmp_path: Path) -> None:
    """The tests with real processes count on it."""
    bench.go(diary=str(tmp_path / "diary"))
    assert (tmp_path / "diary").read_text() == "begin\nend\n"


def test_what_a_job_leaves_waits_for_room(bench: Bench) -> None:
    image = bench.submission.image
    assert image
    large = image.model_copy(update={"digest": bench.blobs.put(large_png())})
    bench.submission = bench.submission.model_copy(update={"image": large})
    with full_disk():
        job = bench.begin()
        wait_until(lambda: bench.engine.running == 0)
        time.sleep(2 * module.RETRY_SECONDS)
        assert bench.ledger.read(job).status == "running"
    wait_until(lambda: bench.ledger.read(job).status == "succeeded")


def test_a_job_for_whose_files_no_room_comes_fails_as_such_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_SECONDS", 0.1)
    image = bench.submission.image
    assert image
    large = image.model_copy(update={"digest": bench.blobs.put(large_png())})
    bench.submission = bench.submission.model_copy(update={"image": large})
    with full_disk():
        last = bench.tried_three_times(bench.accept())
    assert last.error
    assert (last.status, last.attempts, last.error.code) == ("failed", 3, "storage_full")


def test_a_job_that_does_not_end_when_it_is_asked_to_is_let_go(
    settings: Settings, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_worker.Engine, "busy", False)  # whatever it waits for, it is not the engine
    hasty = settings.model_copy(update={"lease": 2.0, "hang": 0.5})
    bench = Bench(hasty, submission, str(settings.redis_url))
    bench.keeper.start()
    try:
        job = bench.begin(steps=0, then="hang")
        bench.ledger.cancel(job)
        wait_until(lambda: bench.ledger.reap().lost == (job,))
        assert bench.ledger.read(job).status == "canceled"
        assert bench.exits == [], "it keeps nobody else from running"
    finally:
        bench.finish()
