"""The ledger: every transition of a job, and which calls may cause it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import redis

from touchstone import errors
from touchstone.ledger import retention
from touchstone.ledger.connection import connect
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Artifact, Job, JobFailure, Progress, Submission, Timings
from touchstone.ledger.replies import JobChange
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings


def claim(ledger: Ledger, job: Job, worker: str = "w1", level: int = 0) -> Job:
    claimed = ledger.claim(job.id, worker, level=level)
    assert claimed is not None
    assert claimed.id == job.id
    return claimed


def expire_leases(server: redis.Redis) -> None:
    """As if every worker had been silent for long."""
    for name in server.zrange("ts:leases", 0, -1):
        server.zadd("ts:leases", {name: 1})


def event_types(ledger: Ledger, job: Job) -> list[str]:
    return [event.type for event in ledger.events(job.id)]


def test_accepted_job_is_queued_with_its_submission(ledger: Ledger, submission: Submission) -> None:
    before = datetime.now(UTC)
    job, created = ledger.accept(submission)
    assert created
    assert job == ledger.read(job.id)
    assert job.status == "queued"
    assert job.submission == submission
    assert job.attempts == job.claims == 0
    assert job.started_at is job.finished_at is None
    assert abs((job.created_at - before).total_seconds()) < 5
    assert 26 <= len(job.id) <= 32


def test_same_idempotency_key_and_digest_return_the_same_job(ledger: Ledger, submission: Submission) -> None:
    first, created = ledger.accept(submission, idempotency=("key", "digest"))
    again, created_again = ledger.accept(submission, idempotency=("key", "digest"))
    assert (created, created_again) == (True, False)
    assert again.id == first.id
    with pytest.raises(errors.IdempotencyMismatch):
        ledger.accept(submission, idempotency=("key", "another digest"))
    other, _ = ledger.accept(submission, idempotency=("another key", "digest"))
    assert other.id != first.id


def test_idempotency_key_is_free_again_after_its_job_is_deleted(
    ledger: Ledger, submission: Submission
) -> None:
    first, _ = ledger.accept(submission, idempotency=("key", "digest"))
    ledger.delete(first.id)
    second, created = ledger.accept(submission, idempotency=("key", "digest"))
    assert created
    assert second.id != first.id


def test_fifty_concurrent_accepts_with_one_idempotency_key_make_one_job(
    ledger: Ledger, submission: Submission
) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(lambda _: ledger.accept(submission, idempotency=("key", "digest")), range(50))
        )
    assert len({job.id for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert ledger.count_by_status()["queued"] == 1


def test_accept_script_sent_twice_makes_one_job(valkey: str) -> None:
    scripts = Scripts(connect(valkey))
    request = '{"image": null, "file": "d"}'
    arguments = ("an-id", request, "attack", "pgd", "m", 1000, 10, 1000, "", "", 1000, "local", "", 9, "", "")
    arguments = (*arguments, 5, 7, "")
    first, version, at, *_ = scripts.run("jobs/accept", *arguments)
    second, pairs = scripts.run("jobs/accept", *arguments)
    assert (first, second) == ("new", "created")
    stored = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert (stored["id"], int(stored["version"]), int(stored["created_at"])) == ("an-id", version, at)
    assert connect(valkey).zcard("ts:all") == 1


def test_accepted_job_is_as_it_is_read(ledger: Ledger, submission: Submission) -> None:
    job, _ = ledger.accept(submission)
    assert ledger.read(job.id) == job


def test_full_queue_refuses_new_jobs_with_retry_after(settings: Settings, submission: Submission) -> None:
    small = Ledger(str(settings.redis_url), settings.model_copy(update={"queue_limit": 2}))
    known, _ = small.accept(submission, idempotency=("key", "digest"))
    small.accept(submission)
    with pytest.raises(errors.QueueFull) as refused:
        small.accept(submission)
    assert refused.value.extra["retry_after"] >= 1
    assert small.accept(submission, idempotency=("key", "digest"))[0].id == known.id
    claim(small, known)
    assert small.accept(submission)[1]
    small.close()


def test_unknown_job_is_refused_or_ignored_by_every_operation(ledger: Ledger) -> None:
    for ask in (ledger.read, ledger.cancel, ledger.delete, ledger.events):
        with pytest.raises(errors.UnknownJob):
            ask("../nothing")
    assert ledger.claim("nothing", "w1") is None
    assert not ledger.finish("nothing", 1, status="succeeded")
    assert not ledger.report("nothing", 1, Progress())
    assert not ledger.release("nothing", 1)
    assert ledger.renew("w1", {"nothing": 1}) == {"nothing": "lost"}


def test_job_can_be_claimed_only_once(ledger: Ledger, job: Job) -> None:
    running = claim(ledger, job)
    assert (running.status, running.attempts, running.claims) == ("running", 1, 1)
    assert running.started_at is not None
    assert running.version > job.version
    assert ledger.claim(job.id, "w1") is None
    assert ledger.claim(job.id, "w2") is None


def test_claim_repeated_with_its_token_returns_the_same_claim(ledger: Ledger, job: Job) -> None:
    first = ledger.claim(job.id, "w1", token="t")
    assert first is not None
    assert ledger.claim(job.id, "w1", token="t") == first
    assert ledger.claim(job.id, "w1", token="u") is None


def test_only_one_of_fifty_concurrent_claims_gets_the_job(ledger: Ledger, job: Job) -> None:
    with ThreadPoolExecutor(50) as pool:
        claims = list(pool.map(lambda n: ledger.claim(job.id, f"w{n}"), range(50)))
    assert sum(claimed is not None for claimed in claims) == 1


def test_finished_job_has_its_result_and_never_changes(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    image = Artifact(digest="sha256:" + "2" * 64, media_type="image/png", size=7)
    parts = {
        "result": {"outcome": "success", "queries": {"forward": 8}},
        "timings": Timings(queued=0.1, compute=0.5),
        "artifacts": {"adversarial.png": image},
    }
    assert ledger.finish(job.id, 1, status="succeeded", **parts)  # type: ignore[arg-type]
    done = ledger.read(job.id)
    assert done.status == "succeeded"
    assert {name: getattr(done, name) for name in parts} == parts
    assert done.finished_at is not None
    assert ledger.finish(job.id, 1, status="failed"), "a repeated finish is answered that it holds"
    assert not ledger.finish(job.id, 2, status="failed")
    assert not ledger.report(job.id, 1, Progress(done=9, total=9))
    assert not ledger.release(job.id, 1)
    with pytest.raises(errors.JobConflict):
        ledger.cancel(job.id)
    assert ledger.read(job.id) == done


def test_failed_job_holds_its_error(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    problem = JobFailure(code="out_of_memory", detail="Not even one row fits.", extra={"rows": 1})
    assert ledger.finish(job.id, 1, status="failed", error=problem)
    assert ledger.read(job.id).error == problem


def test_progress_is_published_and_never_decreases(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    for done in (1, 5, 3):
        assert ledger.report(job.id, 1, Progress(done=done, total=10))
    assert ledger.report(job.id, 1, Progress(done=6, total=10), {"loss": 0.5, "bad": float("nan")})
    assert ledger.read(job.id).progress == Progress(done=6, total=10)
    reported = [event.data for event in ledger.events(job.id) if event.type == "progress"]
    assert [progress["done"] for progress in reported] == [1, 5, 6]
    assert [event.data for event in ledger.events(job.id) if event.type == "metric"] == [{"loss": 0.5}]


def test_stale_claim_writes_nothing(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    claim(ledger, job, "w1")
    expire_leases(server)
    assert ledger.reap().lost == (job.id,)
    assert claim(ledger, job, "w2", level=3).attempts == 2
    before = ledger.read(job.id)
    assert ledger.renew("w1", {job.id: 1}) == {job.id: "lost"}
    assert not ledger.report(job.id, 1, Progress(done=9, total=9))
    assert not ledger.finish(job.id, 1, status="succeeded", result={})
    assert not ledger.release(job.id, 1)
    assert ledger.read(job.id) == before
    assert ledger.renew("w2", {job.id: 2}) == {job.id: "fine"}


def test_another_worker_cannot_renew_the_lease(ledger: Ledger, job: Job) -> None:
    claim(ledger, job, "w1")
    assert ledger.renew("w2", {job.id: 1}) == {job.id: "lost"}


def test_renewed_lease_keeps_the_job(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    claim(ledger, job)
    expire_leases(server)
    assert ledger.renew("w1", {job.id: 1}) == {job.id: "fine"}
    assert ledger.reap().lost == ()


def test_renewal_reports_a_job_past_its_deadline_as_overdue(ledger: Ledger, submission: Submission) -> None:
    job, _ = ledger.accept(submission.model_copy(update={"deadline": 1e-3}))
    claim(ledger, job)
    verdicts = {ledger.renew("w1", {job.id: 1})[job.id] for _ in range(50)}
    assert "overdue" in verdicts


def test_released_job_is_queued_again_and_its_attempt_does_not_count(ledger: Ledger, job: Job) -> None:
    claim(ledger, job, "w1")
    assert ledger.release(job.id, 1)
    assert ledger.release(job.id, 1), "a repeated release is answered that it was done"
    assert (ledger.read(job.id).status, ledger.read(job.id).attempts) == ("queued", 0)
    again = claim(ledger, job, "w2")
    assert (again.attempts, again.claims) == (1, 2)
    assert not ledger.finish(job.id, 1, status="succeeded"), "a released claim holds the job no longer"
    assert ledger.finish(job.id, again.claims, status="succeeded")


def test_queued_job_is_canceled_at_once(ledger: Ledger, job: Job) -> None:
    assert ledger.cancel(job.id).status == "canceled"
    assert ledger.cancel(job.id).status == "canceled"
    assert ledger.claim(job.id, "w1") is None
    assert ledger.queue().depth == 0


def test_renewal_reports_the_cancellation_of_a_running_job(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    canceling = ledger.cancel(job.id)
    assert (canceling.status, canceling.cancel_requested) == ("running", True)
    assert ledger.cancel(job.id).version == canceling.version
    assert ledger.renew("w1", {job.id: 1}) == {job.id: "canceled"}
    assert ledger.finish(job.id, 1, status="canceled")
    assert ledger.cancel(job.id).status == "canceled"


def test_requested_cancellation_outlives_a_late_success(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    ledger.cancel(job.id)
    assert ledger.finish(job.id, 1, status="succeeded", result={"outcome": "success"})
    assert (ledger.read(job.id).status, ledger.read(job.id).result) == ("canceled", None)


@pytest.mark.parametrize("way_out", ["release", "reap"])
def test_canceled_job_is_not_queued_again(
    ledger: Ledger, job: Job, server: redis.Redis, way_out: str
) -> None:
    claim(ledger, job)
    ledger.cancel(job.id)
    if way_out == "release":
        ledger.release(job.id, 1)
    expire_leases(server)
    ledger.reap()
    assert ledger.read(job.id).status == "canceled"


def test_deleted_job_leaves_no_keys(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    claim(ledger, job)
    with pytest.raises(errors.JobConflict):
        ledger.delete(job.id)
    ledger.finish(job.id, 1, status="succeeded")
    ledger.delete(job.id)
    with pytest.raises(errors.UnknownJob):
        ledger.read(job.id)
    assert set(server.keys()) == {"ts:seq", "ts:loose"}  # its image is left to the garbage collector


def test_queued_job_can_be_deleted(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    ledger.delete(job.id)
    assert set(server.keys()) == {"ts:seq", "ts:loose"}  # its image is left to the garbage collector


def test_job_fails_as_worker_lost_after_its_last_loss_alone(
    ledger: Ledger, settings: Settings, job: Job
) -> None:
    claim(ledger, job)
    assert ledger.losses.lose("w1") == (job.id,)
    for strike in range(settings.max_attempts):
        assert claim(ledger, job, level=3).strikes == strike
        assert ledger.losses.lose("w1") == (job.id,)
    failed = ledger.read(job.id)
    assert (failed.status, failed.attempts) == ("failed", 1 + settings.max_attempts)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"
    assert "3 processes in which it ran alone" in failed.error.detail
    assert ledger.losses.lose("w1") == ()


def test_events_record_the_life_of_a_job_and_can_be_resumed(ledger: Ledger, job: Job) -> None:
    claim(ledger, job)
    ledger.report(job.id, 1, Progress(done=1, total=2), {"loss": 1.0})
    ledger.finish(job.id, 1, status="succeeded")
    assert event_types(ledger, job) == ["status", "status", "progress", "metric", "status", "completed"]
    events = ledger.events(job.id)
    assert [event.data["status"] for event in events if event.type == "status"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert ledger.events(job.id, after=events[2].id) == events[3:]
    assert ledger.events(job.id, after=events[-1].id) == []
    assert ledger.events(job.id, limit=2) == events[:2]


@pytest.mark.parametrize("after", ["", "x", "1-2-3", "-", "+", "9" * 30, "1-" + "9" * 30, "1\n"])
def test_forged_event_id_is_refused(ledger: Ledger, job: Job, after: str) -> None:
    with pytest.raises(errors.InvalidCursor):
        ledger.events(job.id, after=after)


def test_watch_receives_changes_of_jobs(ledger: Ledger, submission: Submission) -> None:
    with ledger.watch() as watch:
        job, _ = ledger.accept(submission)
        assert next(iter(watch)) == JobChange(job.id, "queued", 1)
        ledger.cancel(job.id)
        assert next(iter(watch)) == JobChange(job.id, "canceled", 2)
        ledger.delete(job.id)
        assert next(iter(watch)) == JobChange(job.id, "deleted", 0)
        watch.close()
        assert list(watch) == []


def test_workers_are_listed_while_their_heartbeats_last(settings: Settings) -> None:
    brief = Ledger(str(settings.redis_url), settings.model_copy(update={"lease": 0.01}))
    lasting = Ledger(str(settings.redis_url), settings)
    lasting.workers.heartbeat("w1", {"running": 3})
    lasting.workers.heartbeat("w2", {})
    assert [(worker.id, worker.info) for worker in lasting.workers.alive()] == [
        ("w1", {"running": 3}),
        ("w2", {}),
    ]
    lasting.workers.remove("w2")
    assert [worker.id for worker in lasting.workers.alive()] == ["w1"]
    while brief.workers.alive():
        pass
    brief.close()
    lasting.close()


def test_report_and_finish_are_one_change_each(ledger: Ledger, submission: Submission) -> None:
    job = claim(ledger, ledger.accept(submission)[0])
    last = (job.id, 1, Progress(done=2, total=2), {"loss": 0.5})
    with ledger.watch() as watch:
        ledger.report(job.id, 1, Progress(done=1, total=2), {"loss": 1.0})
        assert next(iter(watch)) == JobChange(job.id, "running", job.version + 1, "progress")
        assert ledger.finish(job.id, 1, status="succeeded", last_report=last)
        assert next(iter(watch)) == JobChange(job.id, "succeeded", job.version + 2)
    recorded = [(event.type, event.data) for event in ledger.events(job.id)][-4:-1]
    assert recorded[:2] == [("progress", {"done": 2, "total": 2}), ("metric", {"loss": 0.5})]
    assert recorded[2][0] == "status"
    assert ledger.read(job.id).progress == last[2]


def test_events_of_an_ended_job_are_cut_to_its_changes_of_status(
    ledger: Ledger, submission: Submission, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, waiting = (ledger.accept(submission)[0] for _ in range(2))
    claim(ledger, job)
    for done in range(50):
        ledger.report(job.id, 1, Progress(done=done, total=50), {"loss": 1.0 / (done + 1)})
    ledger.finish(job.id, 1, status="succeeded")
    events = ledger.events(job.id)
    assert (ledger.retention.cut_events(), ledger.events(job.id)) == (0, events), "it has just ended"
    monkeypatch.setattr(retention, "EVENTS_SECONDS", -1.0)
    assert [ledger.retention.cut_events() for _ in range(2)] == [1, 0]
    kept = [event for event in events if event.type in ("status", "completed")]
    assert ledger.events(job.id) == kept
    assert [ledger.events(job.id, after=event.id) for event in kept] == [kept[1:], kept[2:], kept[3:], []]
    assert ledger.events(job.id, after=events[10].id) == kept[2:], "of an event that was cut"
    assert ledger.events(job.id, limit=2) == kept[:2]
    assert event_types(ledger, waiting) == ["status"]
    assert ledger.read(job.id).status == "succeeded"
    assert not server.exists(f"ts:events:{job.id}")
    ledger.delete(job.id)
    with pytest.raises(errors.UnknownJob):
        ledger.events(job.id)
