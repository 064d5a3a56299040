"""Every end of a job is told to each receiver: at least once, under one id, signed, and whatever dies."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from receiver import Receiver, answering, hanging, receiving

from service import views
from touchstone import webhooks
from touchstone.errors import UnknownDelivery, WebhookConflict
from touchstone.jobs import deliveries, delivering, outbox
from touchstone.jobs.deliveries import Delivery
from touchstone.jobs.delivering import Deliverer
from touchstone.jobs.endpoints import JOB_EVENTS, Endpoint
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.outbox import Sending
from touchstone.jobs.record import LOCAL, Job, Problem, Submission
from touchstone.jobs.scripts import connect
from touchstone.outgoing import Outgoing

SECRET = webhooks.new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def server(valkey: str) -> redis.Redis:
    return connect(valkey)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look soon, try again at once."""
    monkeypatch.setattr(delivering, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(webhooks, "PAUSES", (0,) * len(webhooks.PAUSES))


@pytest.fixture
def endpoint(ledger: Ledger, receiver: Receiver) -> Endpoint:
    return listening(ledger, receiver)


def listening(ledger: Ledger, receiver: Receiver, *events: Any, tenant: str = LOCAL) -> Endpoint:
    return ledger.of(tenant).endpoints.add(receiver.url, events or JOB_EVENTS, description="", secret=SECRET)


@pytest.fixture
def deliver(ledger: Ledger) -> Iterator[Callable[..., Deliverer]]:
    """Start to deliver, to loopback by default."""
    started: list[Deliverer] = []

    def start(outgoing: Outgoing | None = None) -> Deliverer:
        show = lambda job: views.show(job).model_dump(mode="json")  # noqa: E731
        one = Deliverer(ledger.outbox, outgoing or Outgoing("127.0.0.0/8"), show)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


def ended(ledger: Ledger, submission: Submission, status: Any = "succeeded") -> Job:
    job = ledger.accept(submission)[0]
    claimed = ledger.claim(job.id, "w1")
    assert claimed is not None
    error = Problem(code="out_of_memory", detail="No.") if status == "failed" else None
    assert ledger.finish(job.id, claimed.claims, status=status, result={"x": 1}, error=error)
    return ledger.read(job.id)


def settled(ledger: Ledger, job: str | None = None, count: int = 1) -> list[Delivery]:
    """All deliveries, once so many are no longer pending."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found, _ = ledger.of(LOCAL).deliveries.find(job=job)
        if sum(one.status != "pending" for one in found) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError(found)


def make_due(server: redis.Redis) -> None:
    """As if the lease of everything that is under way had run out, and every pause were over."""
    for there in server.zrange("ts:deliveries:receivers", 0, -1):
        for name in server.zrange(f"ts:deliveries:due:{there}", 0, -1):
            server.zadd(f"ts:deliveries:due:{there}", {name: 1})
        server.zadd("ts:deliveries:receivers", {there: 1})


def claim(ledger: Ledger) -> Sending:
    [sending] = ledger.outbox.claim({})
    return sending


def test_an_end_is_told_as_the_specification_has_it(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    deliver()
    job = ended(ledger, submission)
    [message] = receiver.wait()
    told = message.verified(SECRET)
    assert told == {
        "type": "job.succeeded",
        "timestamp": views.show(job).model_dump(mode="json")["finished_at"],
        "data": views.show(job).model_dump(mode="json"),
    }
    assert message.headers["content-type"] == "application/json"
    assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < 5
    [delivery] = settled(ledger)
    assert (delivery.id, delivery.status, delivery.job, delivery.endpoint) == (
        message.id,
        "delivered",
        job.id,
        endpoint.id,
    )
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [(204, None)]
    with pytest.raises(Exception, match="No matching signature"):
        message.verified(webhooks.new_secret())


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
    server = ledger._client
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
    assert ledger.of(LOCAL).deliveries.find() == ([], None)
    ended(ledger, submission, "failed")
    [delivery] = ledger.of(LOCAL).deliveries.find()[0]
    assert (delivery.endpoint, ledger.of("other").deliveries.find()[0]) == (failures.id, [])
    theirs = ended(ledger, submission.model_copy(update={"tenant": "other"}))
    [other] = ledger.of("other").deliveries.find()[0]
    assert other.job == theirs.id
    assert ledger.of(LOCAL).deliveries.find(job=theirs.id)[0] == []
    for ask in (ledger.of(LOCAL).deliveries.read, ledger.of(LOCAL).deliveries.replay):
        with pytest.raises(UnknownDelivery):
            ask(other.id)


def test_inference_is_answered_where_it_was_asked(
    ledger: Ledger, endpoint: Endpoint, submission: Submission
) -> None:
    asked = {"kind": "inference", "image": None, "file": "sha256:" + "1" * 64}
    ended(ledger, submission.model_copy(update=asked))
    assert ledger.of(LOCAL).deliveries.find()[0] == []


def test_a_webhook_without_a_secret_is_signed_by_one_that_can_be_drawn(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission
) -> None:
    deliver()
    hooked = submission.model_copy(update={"webhook": receiver.url})
    ended(ledger, hooked)
    receiver.wait()
    secret, _ = ledger.of(LOCAL).endpoints.rotate()
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
    server = ledger._client
    fresh, until = ledger.of(LOCAL).endpoints.rotate(endpoint.id)
    assert 86_390 < until.timestamp() - time.time() < 86_410
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


def test_what_fails_is_tried_again_under_the_same_id(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    receiver.plan = [
        answering(500),
        answering(302, Location="http://127.0.0.1:1/"),
        answering(429, b"x" * 100),
    ]
    deliver()
    ended(ledger, submission)
    [delivery] = settled(ledger)
    assert delivery.status == "delivered"
    assert len({message.id for message in receiver.messages}) == 1
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [
        (500, "refused"),
        (302, "redirected"),
        (429, "refused"),
        (204, None),
    ]


def test_after_ten_tries_it_has_failed_and_can_be_replayed(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    receiver.plan = [answering(500)] * 10
    deliver()
    ended(ledger, submission)
    [delivery] = settled(ledger)
    assert (delivery.status, delivery.due_at, len(delivery.attempts)) == ("failed", None, 10)
    ledger.of(LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(11)[10].id == delivery.id
    [delivery] = settled(ledger)
    assert (delivery.status, len(delivery.attempts)) == ("delivered", 11)


def test_pauses_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    hours = [(webhooks.pause_after(failures) or 0) / 3600 for failures in range(1, 10)]
    assert hours == pytest.approx([5 / 3600, 1 / 12, 0.5, 2, 5, 10, 14, 20, 24], rel=0.11)
    assert webhooks.pause_after(10) is None
    assert len({webhooks.pause_after(4) for _ in range(5)}) > 1
    assert webhooks.pause_after(1, retry_after=90) == 90
    assert webhooks.pause_after(1, retry_after=1e9) == 24 * 3600


def test_a_receiver_that_is_gone_switches_its_endpoint_off_and_a_ping_that_arrives_on(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    receiver.plan = [answering(410)]
    job = ended(ledger, submission)
    deliver()
    [delivery] = settled(ledger)
    assert (delivery.status, [attempt.status for attempt in delivery.attempts]) == ("failed", [410])
    assert ledger.of(LOCAL).endpoints.read(endpoint.id).disabled_at is not None
    ended(ledger, submission)
    assert [one.job for one in ledger.of(LOCAL).deliveries.find()[0]] == [job.id]
    with pytest.raises(WebhookConflict, match="switched off"):
        ledger.of(LOCAL).deliveries.replay(delivery.id)
    ping = ledger.of(LOCAL).endpoints.ping(endpoint.id)
    assert receiver.wait(2)[1].verified(SECRET)["data"] == {"endpoint": endpoint.id}
    settled(ledger, count=2)
    assert ledger.of(LOCAL).deliveries.read(ping.id).status == "delivered"
    assert ledger.of(LOCAL).endpoints.read(endpoint.id).disabled_at is None
    ledger.of(LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(3)[2].id == delivery.id


def test_a_ping_sent_twice_to_the_ledger_is_one(ledger: Ledger, endpoint: Endpoint) -> None:
    first, second = (ledger._scripts.run("ping", LOCAL, endpoint.id, "msg_" + "0" * 40) for _ in range(2))
    assert first == second
    assert len(ledger.outbox.claim({})) == 1


def test_what_waits_for_an_endpoint_that_is_deleted_fails(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    ended(ledger, submission)
    ledger.of(LOCAL).endpoints.forget(endpoint.id)
    deliver()
    [delivery] = settled(ledger)
    assert [attempt.error for attempt in delivery.attempts] == ["endpoint_deleted"]
    assert receiver.messages == []
    with pytest.raises(WebhookConflict, match="deleted"):
        ledger.of(LOCAL).deliveries.replay(delivery.id)


@pytest.mark.usefixtures("endpoint")
def test_a_sender_that_dies_before_it_could_tell_leaves_it_to_another(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(ledger, submission)
    dead = claim(ledger)
    make_due(ledger._client)
    with monkeypatch.context() as dying:
        dying.setattr(Deliverer, "_note", lambda *_: None)
        one = deliver()
        receiver.wait()
        one.stop()
    assert ledger.outbox.claim({}) == []
    make_due(ledger._client)
    deliver()
    first, second = receiver.wait(2)
    assert first.id == second.id == dead.delivery.id
    assert first.verified(SECRET) == second.verified(SECRET)
    [delivery] = settled(ledger)
    assert not ledger.outbox.note(dead, deliveries.Outcome(ms=1, status=500, error="refused"))
    assert ledger.of(LOCAL).deliveries.read(delivery.id) == delivery
    assert len(delivery.attempts) == 1


def test_a_result_told_twice_counts_once(ledger: Ledger, endpoint: Endpoint, submission: Submission) -> None:
    ended(ledger, submission)
    sending = claim(ledger)
    attempt = deliveries.Outcome(ms=1, status=500, error="refused")
    assert all(ledger.outbox.note(sending, attempt, pause=60) for _ in range(2))
    [delivery] = ledger.of(LOCAL).deliveries.find()[0]
    assert (len(delivery.attempts), delivery.status) == (1, "pending")
    assert delivery.due_at is not None
    assert 50 < delivery.due_at.timestamp() - time.time() < 70


def test_a_receiver_that_hangs_keeps_nobody_waiting(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission
) -> None:
    go_on = threading.Event()
    with receiving() as slow:
        slow.plan = [hanging(go_on)] * 40
        for _ in range(40):
            ended(ledger, submission.model_copy(update={"webhook": slow.url}))
        ended(ledger, submission.model_copy(update={"webhook": receiver.url}))
        began = time.monotonic()
        deliver()
        receiver.wait()
        assert time.monotonic() - began < 3
        assert len(slow.messages) <= outbox.MOST_FOR_A_RECEIVER
        go_on.set()
        slow.wait(40)
        assert len(settled(ledger, count=41)) == 41


def test_a_tenant_with_many_receivers_leaves_room_for_others(ledger: Ledger, submission: Submission) -> None:
    for host in range(40):
        hooked = {"tenant": "greedy", "webhook": f"https://{host}.example/"}
        ended(ledger, submission.model_copy(update=hooked))
    theirs = ended(ledger, submission.model_copy(update={"webhook": "https://a.example/"}))
    taken = ledger.outbox.claim({})
    assert [one.delivery.tenant for one in taken].count("greedy") == outbox.MOST_FOR_A_TENANT
    assert taken[-1].delivery.job == theirs.id
    under_way = Counter(one.receiver for one in taken)
    ended(ledger, submission.model_copy(update={"webhook": "https://a.example/"}))
    assert [one.delivery.tenant for one in ledger.outbox.claim(under_way)] == [LOCAL]


def test_a_receiver_that_hangs_for_good_is_given_up(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "ANSWER_SECONDS", 0.2)
    go_on = threading.Event()
    receiver.plan = [hanging(go_on)]
    deliver()
    ended(ledger, submission.model_copy(update={"webhook": receiver.url}))
    [delivery] = settled(ledger)
    go_on.set()
    assert [attempt.error for attempt in delivery.attempts] == ["timed_out", None]
    assert 200 <= delivery.attempts[0].ms < 2000


def test_a_name_that_turns_private_after_the_check_is_refused(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission
) -> None:
    answers = ["93.184.216.34", *["127.0.0.1"] * 20]

    def find(_host: str, port: int) -> list[tuple[int, Any, str]]:
        address = answers.pop(0)
        return [(socket.AF_INET, (address, port), address)]

    outgoing = Outgoing(find=find)
    url = f"https://rebinding.example:{receiver.port}/"
    outgoing.check(url)
    ended(ledger, submission.model_copy(update={"webhook": url}))
    deliver(outgoing)
    [delivery] = settled(ledger)
    assert {(attempt.status, attempt.error) for attempt in delivery.attempts} == {(None, "address_refused")}
    assert receiver.messages == []


def test_deliveries_go_with_their_job_and_when_they_are_old(
    ledger: Ledger, endpoint: Endpoint, submission: Submission, server: redis.Redis
) -> None:
    ledger.delete(ended(ledger, submission).id)
    assert ledger.of(LOCAL).deliveries.find()[0] == []
    assert ledger.outbox.claim({}) == []
    server.zadd("ts:ended", {ended(ledger, submission).id: 1})
    assert ledger.keeping.expire() == 1
    assert ledger.of(LOCAL).deliveries.find()[0] == []
    job = ended(ledger, submission)
    server.zadd("ts:deliveries", {ledger.of(LOCAL).deliveries.find()[0][0].id: 1})
    assert ledger.outbox.claim({}) == []
    assert ledger.of(LOCAL).deliveries.find(job=job.id)[0] == []
    lost = ended(ledger, submission)
    server.delete(f"ts:job:{lost.id}")
    assert ledger.outbox.claim({}) == []
    assert server.keys("ts:deliver*") == []


def test_deliveries_are_listed_in_pages(ledger: Ledger, endpoint: Endpoint, submission: Submission) -> None:
    jobs = [ended(ledger, submission).id for _ in range(5)]
    first, cursor = ledger.of(LOCAL).deliveries.find(status="pending", endpoint=endpoint.id, limit=3)
    rest, end = ledger.of(LOCAL).deliveries.find(
        status="pending", endpoint=endpoint.id, limit=3, cursor=cursor
    )
    assert [one.job for one in [*first, *rest]] == jobs[::-1]
    assert end is None
    assert ledger.of(LOCAL).deliveries.find(status="failed")[0] == []
