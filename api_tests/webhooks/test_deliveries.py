"""Every end of a job is told, signed, to each receiver that asked for it and to no other tenant's."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from api_tests.support.webhook_jobs import SECRET, add_endpoint, finish_job, wait_for_deliveries
from api_tests.support.webhook_receiver import Receiver
from service import schemas
from touchstone.errors import UnknownDelivery
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks import signatures
from touchstone.ledger.webhooks.endpoints import WebhookEndpoint

pytestmark = pytest.mark.usefixtures("fast_retries")


def test_ended_job_is_delivered_signed_as_standard_webhooks_specify(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    start_dispatcher()
    job = finish_job(ledger, submission)
    [message] = receiver.wait()
    told = message.verify(SECRET)
    assert told == {
        "type": "job.succeeded",
        "timestamp": schemas.show(job).model_dump(mode="json")["finished_at"],
        "data": schemas.show(job).model_dump(mode="json"),
    }
    assert message.headers["content-type"] == "application/json"
    assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < 60
    [delivery] = wait_for_deliveries(ledger)
    assert (delivery.id, delivery.status, delivery.job, delivery.endpoint) == (
        message.id,
        "delivered",
        job.id,
        endpoint.id,
    )
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [(204, None)]
    with pytest.raises(Exception, match="No matching signature"):
        message.verify(signatures.new_secret())


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
    return finish_job(ledger, submission, "failed").id


def lose_workers(ledger: Ledger, submission: Submission) -> str:
    job = ledger.accept(submission)[0]
    for level in (0, 3, 3, 3):  # a worker, then processes of suspects
        assert ledger.claim(job.id, "w1", level=level)
        ledger.losses.lose("w1")
    ledger.losses.lose("w1")
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
def test_every_kind_of_job_end_is_delivered_once_to_each_receiver(
    ledger: Ledger,
    receiver: Receiver,
    start_dispatcher: Any,
    submission: Submission,
    ending: tuple[Any, str],
) -> None:
    end, kind = ending
    job = end(ledger, submission.model_copy(update={"webhook": receiver.url + "/own"}))
    start_dispatcher()
    start_dispatcher()
    found = wait_for_deliveries(ledger, count=2)
    messages = receiver.wait(2)
    assert sorted(message.path for message in messages) == ["/hook", "/hook/own"]
    assert {message.id for message in messages} == {one.id for one in found}
    assert {(one.type, one.job, one.status) for one in found} == {(kind, job, "delivered")}


def test_endpoint_gets_only_its_event_types_and_only_of_its_tenant(
    ledger: Ledger, receiver: Receiver, submission: Submission
) -> None:
    failures = add_endpoint(ledger, receiver, "job.failed")
    add_endpoint(ledger, receiver, tenant="other")
    finish_job(ledger, submission)
    assert TenantLedger.of(ledger, LOCAL).deliveries.find() == ([], None)
    finish_job(ledger, submission, "failed")
    [delivery] = TenantLedger.of(ledger, LOCAL).deliveries.find()[0]
    assert (delivery.endpoint, TenantLedger.of(ledger, "other").deliveries.find()[0]) == (failures.id, [])
    theirs = finish_job(ledger, submission.model_copy(update={"tenant": "other"}))
    [other] = TenantLedger.of(ledger, "other").deliveries.find()[0]
    assert other.job == theirs.id
    assert TenantLedger.of(ledger, LOCAL).deliveries.find(job=theirs.id)[0] == []
    for ask in (
        TenantLedger.of(ledger, LOCAL).deliveries.read,
        TenantLedger.of(ledger, LOCAL).deliveries.replay,
    ):
        with pytest.raises(UnknownDelivery):
            ask(other.id)


def test_inference_jobs_make_no_delivery(
    ledger: Ledger, endpoint: WebhookEndpoint, submission: Submission
) -> None:
    asked = {"kind": "inference", "image": None, "file": "sha256:" + "1" * 64}
    finish_job(ledger, submission.model_copy(update=asked))
    assert TenantLedger.of(ledger, LOCAL).deliveries.find()[0] == []


def test_submission_webhook_is_signed_with_the_secret_of_the_tenant(
    ledger: Ledger, receiver: Receiver, start_dispatcher: Any, submission: Submission
) -> None:
    start_dispatcher()
    hooked = submission.model_copy(update={"webhook": receiver.url})
    finish_job(ledger, hooked)
    receiver.wait()
    secret, _ = TenantLedger.of(ledger, LOCAL).endpoints.rotate()
    finish_job(ledger, hooked)
    assert receiver.wait(2)[1].verify(secret)["type"] == "job.succeeded"


def test_rotated_secret_stays_valid_for_a_day(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    start_dispatcher()
    server = ledger.client
    fresh, until = TenantLedger.of(ledger, LOCAL).endpoints.rotate(endpoint.id)
    assert 86_300 < until.timestamp() - time.time() < 86_500
    finish_job(ledger, submission)
    [message] = receiver.wait()
    assert message.verify(fresh) == message.verify(SECRET)
    stored = server.hget(f"ts:webhook-secrets:{LOCAL}", endpoint.id)
    server.hset(
        f"ts:webhook-secrets:{LOCAL}", endpoint.id, stored.replace('"good_until":1', '"good_until":0.1')
    )
    finish_job(ledger, submission)
    message = receiver.wait(2)[1]
    assert message.verify(fresh)
    with pytest.raises(Exception, match="No matching signature"):
        message.verify(SECRET)


def test_deliveries_are_deleted_with_their_job_or_when_they_expire(
    ledger: Ledger, endpoint: WebhookEndpoint, submission: Submission, server: redis.Redis
) -> None:
    ledger.delete(finish_job(ledger, submission).id)
    assert TenantLedger.of(ledger, LOCAL).deliveries.find()[0] == []
    assert ledger.outbox.claim({}) == []
    server.zadd("ts:ended", {finish_job(ledger, submission).id: 1})
    assert ledger.retention.expire() == 1
    assert TenantLedger.of(ledger, LOCAL).deliveries.find()[0] == []
    job = finish_job(ledger, submission)
    server.zadd("ts:deliveries", {TenantLedger.of(ledger, LOCAL).deliveries.find()[0][0].id: 1})
    assert ledger.outbox.claim({}) == []
    assert TenantLedger.of(ledger, LOCAL).deliveries.find(job=job.id)[0] == []
    lost = finish_job(ledger, submission)
    server.delete(f"ts:job:{lost.id}")
    assert ledger.outbox.claim({}) == []
    assert server.keys("ts:deliver*") == []


def test_deliveries_are_listed_in_pages(
    ledger: Ledger, endpoint: WebhookEndpoint, submission: Submission
) -> None:
    jobs = [finish_job(ledger, submission).id for _ in range(5)]
    first, cursor = TenantLedger.of(ledger, LOCAL).deliveries.find(
        status="pending", endpoint=endpoint.id, limit=3
    )
    rest, end = TenantLedger.of(ledger, LOCAL).deliveries.find(
        status="pending", endpoint=endpoint.id, limit=3, cursor=cursor
    )
    assert [one.job for one in [*first, *rest]] == jobs[::-1]
    assert end is None
    assert TenantLedger.of(ledger, LOCAL).deliveries.find(status="failed")[0] == []
