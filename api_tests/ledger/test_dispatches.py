"""Jobs whose message to the workers was lost are dispatched again."""

from __future__ import annotations

import pytest
import redis

from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Submission


def age_dispatches(server: redis.Redis) -> None:
    """As if every waiting job had been dispatched long ago."""
    for position, name in enumerate(server.zrange("ts:status:queued", 0, -1)):
        server.zadd("ts:bells", {name: position + 1})


def test_lost_dispatch_is_repeated_once(ledger: Ledger, job: Job, server: redis.Redis) -> None:
    assert ledger.reap().to_dispatch == (), "its first dispatch may still be on the way"
    age_dispatches(server)
    assert ledger.reap().to_dispatch == (job.id,)
    assert ledger.reap().to_dispatch == ()


@pytest.mark.parametrize(("messages", "repeated"), [(0, 3), (1, 2), (2, 1), (3, 0), (5, 0)])
def test_only_dispatches_missing_from_the_broker_are_repeated(
    ledger: Ledger, submission: Submission, server: redis.Redis, messages: int, repeated: int
) -> None:
    jobs = [ledger.accept(submission)[0].id for _ in range(3)]
    age_dispatches(server)
    for _ in range(messages):
        server.lpush("touchstone", "message")
    assert ledger.reap().to_dispatch == tuple(jobs[:repeated])


def test_lost_dispatches_are_repeated_in_order_100_at_a_time(
    ledger: Ledger, submission: Submission, server: redis.Redis
) -> None:
    jobs = [ledger.accept(submission)[0].id for _ in range(250)]
    age_dispatches(server)
    server.lpush("touchstone", *["message"] * 10)
    repeated = [ledger.reap().to_dispatch for _ in range(4)]
    assert [len(batch) for batch in repeated] == [100, 100, 50, 0]
    assert [name for batch in repeated for name in batch] == jobs


def test_claimed_job_is_not_dispatched_again_until_it_is_released(
    ledger: Ledger, job: Job, server: redis.Redis
) -> None:
    age_dispatches(server)
    assert ledger.claim(job.id, "w1")
    assert ledger.reap().to_dispatch == ()
    ledger.release(job.id, 1)
    assert ledger.reap().to_dispatch == (job.id,), "a released job is dispatched without delay"
