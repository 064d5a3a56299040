"""What the ledger does for many jobs in one step."""

from __future__ import annotations

import redis

from api_tests.ledger.test_ledger import claim
from touchstone import errors
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Progress, Submission


def test_status_counts_and_queue_depth_follow_the_jobs(ledger: Ledger, submission: Submission) -> None:
    assert (ledger.queue().depth, ledger.queue().age) == (0, 0)
    first, second = (ledger.accept(submission)[0] for _ in range(2))
    claim(ledger, first)
    assert ledger.count_by_status() == {"queued": 1, "running": 1, "succeeded": 0, "failed": 0, "canceled": 0}
    assert ledger.queue().depth == 1
    assert 0 <= ledger.queue().age < 5
    ledger.cancel(second.id)
    assert ledger.queue().depth == 0


def test_many_jobs_are_canceled_in_one_call(ledger: Ledger, submission: Submission) -> None:
    running, ended, waiting, over = (ledger.accept(submission)[0] for _ in range(4))
    claim(ledger, running)
    ledger.finish(ended.id, claim(ledger, ended).claims, status="succeeded")
    ledger.cancel(over.id)
    names = [waiting.id, "nobody", running.id, ended.id, over.id, waiting.id]
    answers = ledger.cancel_all(names)
    assert [answer.id for answer in answers] == names
    statuses = ["canceled", None, "running", "succeeded", "canceled", "canceled"]
    assert [answer.status for answer in answers] == statuses
    refusals = [type(answer.refusal) for answer in answers]
    assert refusals == [type(None), errors.UnknownJob, type(None), errors.JobConflict, type(None), type(None)]
    assert ledger.read(waiting.id).status == "canceled"
    assert ledger.read(running.id).cancel_requested
    assert ledger.read(ended.id).status == "succeeded"
    assert ledger.cancel_all([]) == []


def test_ahead_counts_the_jobs_that_wait_before_a_job(ledger: Ledger, submission: Submission) -> None:
    jobs = [ledger.accept(submission)[0] for _ in range(4)]
    assert [ledger.count_ahead(job.id) for job in jobs] == [0, 1, 2, 3]
    ledger.cancel(jobs[1].id)
    claimed = claim(ledger, jobs[0])
    assert [ledger.count_ahead(job.id) for job in jobs] == [0, 0, 0, 1]
    ledger.release(jobs[0].id, claimed.claims)
    assert [ledger.count_ahead(job.id) for job in jobs] == [0, 0, 1, 2]


def test_progress_of_many_jobs_is_read_in_one_call(ledger: Ledger, submission: Submission) -> None:
    jobs = [ledger.accept(submission)[0] for _ in range(2)]
    claimed = claim(ledger, jobs[0])
    ledger.report(claimed.id, claimed.claims, Progress(done=3, total=9))
    expected = {jobs[0].id: Progress(done=3, total=9), jobs[1].id: Progress()}
    assert ledger.progress([jobs[0].id, "nobody", jobs[1].id]) == expected
    assert ledger.progress([]) == {}


def test_watch_reports_the_kind_of_each_change(ledger: Ledger, submission: Submission) -> None:
    job = ledger.accept(submission)[0]
    with ledger.watch() as watch:
        claims = claim(ledger, job).claims
        ledger.report(job.id, claims, Progress(done=1, total=2), {"loss": 1.0})
        ledger.report(job.id, claims, Progress(done=1, total=2), {"loss": 0.5})
        ledger.report(job.id, claims, Progress(done=1, total=2))
        ledger.finish(
            job.id, claims, status="succeeded", last_report=(job.id, 1, Progress(done=2, total=2), None)
        )
        ledger.delete(job.id)
        changes = watch.poll()
        received = [change for change in (next(changes) for _ in range(5)) if change]
        assert next(changes) is None
    assert [change.kind for change in received] == ["status", "progress", "metric", "status", "status"]


def test_reaper_takes_all_jobs_of_a_lost_worker_at_once(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    for _ in range(101):
        job = ledger.claim(ledger.accept(submission)[0].id, "w")
        assert job
        server.zadd("ts:leases", {job.id: 1})
    assert [len(ledger.reap().lost) for _ in range(2)] == [101, 0]
