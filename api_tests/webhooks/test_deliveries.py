"""Every end of a job is told, signed, to each receiver that asked for it and to no other tenant's."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from api_tests.support.webhook_jobs import SECRET, ended, listening, settled
from api_tests.support.webhook_receiver import Receiver
from service import schemas
from touchstone.errors import UnknownDelivery
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.endpoints import Endpoint

pytestmark = pytest.mark.usefixtures("impatience")


def test_an_end_is_told_as_the_specification_has_it(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    deliver()
    job = ended(ledger, submission)
    [message] = receiver.wait()
    told = message.verified(SECRET)
    assert told == {
        "type": "job.succeeded",
        "timestamp": schemas.show(job).model_dump(mode="json")["finished_at"],
        "data": schemas.show(job).model_dump(mode="json"),
    }
    assert message.headers["content-type"] == "application/json"
    assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < 60
    [delivery] = settled(ledger)
    assert (delivery.id, delivery.status, delivery.job, delivery.endpoint) == (
        message.id,
        "delivered",
        job.id,
        endpoint.id,
    )
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [(204, None)]
    with pytest.raises(Exception, match="No matching signature"):
        message.verified(signatures.new_secret())


def cancel_waiting(ledger: Ledger, submission: Submission) -> str:
    job = ledger.accept(submission)[0]
    ledger.cancel(job.id)
    ledger.cancel(job.id)
    return job.id


def cancel_running(ledger: Ledger, submission: Submission) -> str:
    job = ledger.accept(submission)[0]
    claimed = ledger.claim(job.id, "w1")
    assert claimed
    ledger.cancel(job.id)
    assert all(ledger.finish(job.id, claimed.claims, status="succeeded") for _ in range(2))
    return job.id


def release_canceled(ledger: Ledger, submission: Submission) -> str:
    job = ledger.accept(submission)[0]
    claimed = ledger.claim(job.id, "w1")
    assert claimed
    ledger.cancel(job.id)
    assert all(ledger.release(job.id, claimed.claims) for _ in range(2))
    return job.id


def fail(ledger: Ledger, submission: Submission) -> str:
    return ended(ledger, submission, "failed").id


def lose_workers(ledger: Ledger, submission: Submission) -> str:
    job = ledger.accept(submission)[0]
    server = ledger.client
    for _ in range(3):
        assert ledger.claim(job.id, "w1")
        server.zadd("ts:leases", {job.id: 1})
        ledger.reap()
    ledger.reap()
    return job.id


@pytest.mark.parametrize(
    "ending",
    [
        (cancel_waiting, "job.canceled"),
        (cancel_running, "job.canceled"),
        (release_canceled, "job.canceled"),
        (fail, "job.failed"),
        (lose_workers, "job.failed"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_whatever_ends_a_job_tells_each_receiver_once(
    ledger: Ledger,
    receiver: Receiver,
    deliver: Any,
    submission: Submission,
    ending: tuple[Any, str],
) -> None:
    end, kind = ending
    job = end(ledger, submission.model_copy(update={"webhook": receiver.url + "/own"}))
    deliver()
    deliver()
    found = settled(ledger, count=2)
    messages = receiver.wait(2)
    assert sorted(message.path for message in messages) == ["/hook", "/hook/own"]
    assert {message.id for message in messages} == {one.id for one in found}
    assert {(one.type, one.job, one.status) for one in found} == {(kind, job, "delivered")}


def test_only_what_an_endpoint_asked_for_is_told_and_only_of_its_tenant(
    ledger: Ledger, receiver: Receiver, submission: Submission
) -> None:
    failures = listening(ledger, receiver, "job.failed")
    listening(ledger, receiver, tenant="other")
    ended(ledger, submission)
    assert Holdings.of(ledger, LOCAL).deliveries.find() == ([], None)
    ended(ledger, submission, "failed")
    [delivery] = Holdings.of(ledger, LOCAL).deliveries.find()[0]
    assert (delivery.endpoint, Holdings.of(ledger, "other").deliveries.find()[0]) == (failures.id, [])
    theirs = ended(ledger, submission.model_copy(update={"tenant": "other"}))
    [other] = Holdings.of(ledger, "other").deliveries.find()[0]
    assert other.job == theirs.id
    assert Holdings.of(ledger, LOCAL).deliveries.find(job=theirs.id)[0] == []
    for ask in (Holdings.of(ledger, LOCAL).deliveries.read, Holdings.of(ledger, LOCAL).deliveries.replay):
        with pytest.raises(UnknownDelivery):
            ask(other.id)


def test_inference_is_answered_where_it_was_asked(
    ledger: Ledger, endpoint: Endpoint, submission: Submission
) -> None:
    asked = {"kind": "inference", "image": None, "file": "sha256:" + "1" * 64}
    ended(ledger, submission.model_copy(update=asked))
    assert Holdings.of(ledger, LOCAL).deliveries.find()[0] == []


def test_a_webhook_without_a_secret_is_signed_by_one_that_can_be_drawn(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission
) -> None:
    deliver()
    hooked = submission.model_copy(update={"webhook": receiver.url})
    ended(ledger, hooked)
    receiver.wait()
    secret, _ = Holdings.of(ledger, LOCAL).endpoints.rotate()
    ended(ledger, hooked)
    assert receiver.wait(2)[1].verified(secret)["type"] == "job.succeeded"


def test_a_rotated_secret_stays_good_for_a_day(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: Endpoint,
    deliver: Any,
    submission: Submission,
) -> None:
    deliver()
    server = ledger.client
    fresh, until = Holdings.of(ledger, LOCAL).endpoints.rotate(endpoint.id)
    assert 86_300 < until.timestamp() - time.time() < 86_500
    ended(ledger, submission)
    [message] = receiver.wait()
    assert message.verified(fresh) == message.verified(SECRET)
    stored = server.hget(f"ts:webhook-secrets:{LOCAL}", endpoint.id)
    server.hset(
        f"ts:webhook-secrets:{LOCAL}", endpoint.id, stored.replace('"good_until":1', '"good_until":0.1')
    )
    ended(ledger, submission)
    message = receiver.wait(2)[1]
    assert message.verified(fresh)
    with pytest.raises(Exception, match="No matching signature"):
        message.verified(SECRET)


def test_deliveries_go_with_their_job_and_when_they_are_old(
    ledger: Ledger, endpoint: Endpoint, submission: Submission, server: redis.Redis
) -> None:
    ledger.delete(ended(ledger, submission).id)
    assert Holdings.of(ledger, LOCAL).deliveries.find()[0] == []
    assert ledger.outbox.claim({}) == []
    server.zadd("ts:ended", {ended(ledger, submission).id: 1})
    assert ledger.keeping.expire() == 1
    assert Holdings.of(ledger, LOCAL).deliveries.find()[0] == []
    job = ended(ledger, submission)
    server.zadd("ts:deliveries", {Holdings.of(ledger, LOCAL).deliveries.find()[0][0].id: 1})
    assert ledger.outbox.claim({}) == []
    assert Holdings.of(ledger, LOCAL).deliveries.find(job=job.id)[0] == []
    lost = ended(ledger, submission)
    server.delete(f"ts:job:{lost.id}")
    assert ledger.outbox.claim({}) == []
    assert server.keys("ts:deliver*") == []


def test_deliveries_are_listed_in_pages(ledger: Ledger, endpoint: Endpoint, submission: Submission) -> None:
    jobs = [ended(ledger, submission).id for _ in range(5)]
    first, cursor = Holdings.of(ledger, LOCAL).deliveries.find(
        status="pending", endpoint=endpoint.id, limit=3
    )
    rest, end = Holdings.of(ledger, LOCAL).deliveries.find(
        status="pending", endpoint=endpoint.id, limit=3, cursor=cursor
    )
    assert [one.job for one in [*first, *rest]] == jobs[::-1]
    assert end is None
    assert Holdings.of(ledger, LOCAL).deliveries.find(status="failed")[0] == []
