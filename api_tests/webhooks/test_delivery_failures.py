"""A delivery that fails is tried again under its id or given up, and neither holds up nor loses another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import redis

from api_tests.support.dns import PUBLIC, finding
from api_tests.support.wait import SECONDS
from api_tests.support.webhook_jobs import SECRET, ended, settled
from api_tests.support.webhook_receiver import Receiver, answering, hanging, receiving
from touchstone.errors import WebhookConflict
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.ledger.webhooks import deliveries, dispatcher, outbox, signatures
from touchstone.ledger.webhooks.dispatcher import Deliverer
from touchstone.ledger.webhooks.endpoints import Endpoint
from touchstone.ledger.webhooks.outbox import Sending
from touchstone.net.outbound import Outgoing

pytestmark = pytest.mark.usefixtures("impatience")


def make_due(server: redis.Redis) -> None:
    """As if the lease of everything that is under way had run out, and every pause were over."""
    for there in server.zrange("ts:deliveries:receivers", 0, -1):
        for name in server.zrange(f"ts:deliveries:due:{there}", 0, -1):
            server.zadd(f"ts:deliveries:due:{there}", {name: 1})
        server.zadd("ts:deliveries:receivers", {there: 1})


def claim(ledger: Ledger) -> Sending:
    [sending] = ledger.outbox.claim({})
    return sending


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
    Holdings.of(ledger, LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(11)[10].id == delivery.id
    [delivery] = settled(ledger)
    assert (delivery.status, len(delivery.attempts)) == ("delivered", 11)


def test_pauses_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    hours = [(signatures.pause_after(failures) or 0) / 3600 for failures in range(1, 10)]
    assert hours == pytest.approx([5 / 3600, 1 / 12, 0.5, 2, 5, 10, 14, 20, 24], rel=0.11)
    assert signatures.pause_after(10) is None
    assert len({signatures.pause_after(4) for _ in range(5)}) > 1
    assert signatures.pause_after(1, retry_after=90) == 90
    assert signatures.pause_after(1, retry_after=1e9) == 24 * 3600


def test_a_receiver_that_is_gone_switches_its_endpoint_off_and_a_ping_that_arrives_on(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    receiver.plan = [answering(410)]
    job = ended(ledger, submission)
    deliver()
    [delivery] = settled(ledger)
    assert (delivery.status, [attempt.status for attempt in delivery.attempts]) == ("failed", [410])
    assert Holdings.of(ledger, LOCAL).endpoints.read(endpoint.id).disabled_at is not None
    ended(ledger, submission)
    assert [one.job for one in Holdings.of(ledger, LOCAL).deliveries.find()[0]] == [job.id]
    with pytest.raises(WebhookConflict, match="switched off"):
        Holdings.of(ledger, LOCAL).deliveries.replay(delivery.id)
    ping = Holdings.of(ledger, LOCAL).endpoints.ping(endpoint.id)
    assert receiver.wait(2)[1].verified(SECRET)["data"] == {"endpoint": endpoint.id}
    settled(ledger, count=2)
    assert Holdings.of(ledger, LOCAL).deliveries.read(ping.id).status == "delivered"
    assert Holdings.of(ledger, LOCAL).endpoints.read(endpoint.id).disabled_at is None
    Holdings.of(ledger, LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(3)[2].id == delivery.id


def test_a_ping_sent_twice_to_the_ledger_is_one(ledger: Ledger, endpoint: Endpoint) -> None:
    first, second = (
        ledger.scripts.run("webhooks/ping", LOCAL, endpoint.id, "msg_" + "0" * 40) for _ in range(2)
    )
    assert first == second
    assert len(ledger.outbox.claim({})) == 1


def test_what_waits_for_an_endpoint_that_is_deleted_fails(
    ledger: Ledger, receiver: Receiver, endpoint: Endpoint, deliver: Any, submission: Submission
) -> None:
    ended(ledger, submission)
    Holdings.of(ledger, LOCAL).endpoints.forget(endpoint.id)
    deliver()
    [delivery] = settled(ledger)
    assert [attempt.error for attempt in delivery.attempts] == ["endpoint_deleted"]
    assert receiver.messages == []
    with pytest.raises(WebhookConflict, match="deleted"):
        Holdings.of(ledger, LOCAL).deliveries.replay(delivery.id)


@pytest.mark.usefixtures("endpoint")
def test_a_sender_that_dies_before_it_could_tell_leaves_it_to_another(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(ledger, submission)
    dead = claim(ledger)
    make_due(ledger.client)
    with monkeypatch.context() as dying:
        dying.setattr(Deliverer, "_note", lambda *_: None)
        one = deliver()
        receiver.wait()
        one.stop()
    assert ledger.outbox.claim({}) == []
    make_due(ledger.client)
    deliver()
    first, second = receiver.wait(2)
    assert first.id == second.id == dead.delivery.id
    assert first.verified(SECRET) == second.verified(SECRET)
    [delivery] = settled(ledger)
    assert not ledger.outbox.note(dead, deliveries.Outcome(ms=1, status=500, error="refused"))
    assert Holdings.of(ledger, LOCAL).deliveries.read(delivery.id) == delivery
    assert len(delivery.attempts) == 1


def test_a_result_told_twice_counts_once(ledger: Ledger, endpoint: Endpoint, submission: Submission) -> None:
    ended(ledger, submission)
    sending = claim(ledger)
    attempt = deliveries.Outcome(ms=1, status=500, error="refused")
    assert all(ledger.outbox.note(sending, attempt, pause=60) for _ in range(2))
    [delivery] = Holdings.of(ledger, LOCAL).deliveries.find()[0]
    assert (len(delivery.attempts), delivery.status) == (1, "pending")
    assert delivery.due_at is not None
    assert 20 < delivery.due_at.timestamp() - time.time() <= 70


def test_a_receiver_that_hangs_keeps_nobody_waiting(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_SECONDS", 2 * SECONDS)
    go_on = threading.Event()
    with receiving() as slow:
        slow.plan = [hanging(go_on)] * 40
        for _ in range(40):
            ended(ledger, submission.model_copy(update={"webhook": slow.url}))
        ended(ledger, submission.model_copy(update={"webhook": receiver.url}))
        deliver()
        receiver.wait()
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
    monkeypatch.setattr(dispatcher, "ANSWER_SECONDS", 1.0)
    go_on = threading.Event()
    receiver.plan = [hanging(go_on)]
    deliver()
    ended(ledger, submission.model_copy(update={"webhook": receiver.url}))
    [delivery] = settled(ledger)
    go_on.set()
    assert [attempt.error for attempt in delivery.attempts] == ["timed_out", None]
    assert delivery.attempts[0].ms >= 1000


def test_a_name_that_turns_private_after_the_check_is_refused(
    ledger: Ledger, receiver: Receiver, deliver: Any, submission: Submission
) -> None:
    outgoing = Outgoing(find=finding(PUBLIC, "127.0.0.1"))
    url = f"https://rebinding.example:{receiver.port}/"
    outgoing.check(url)
    ended(ledger, submission.model_copy(update={"webhook": url}))
    deliver(outgoing)
    [delivery] = settled(ledger)
    assert {(attempt.status, attempt.error) for attempt in delivery.attempts} == {(None, "address_refused")}
    assert receiver.messages == []


def test_a_delivery_for_which_there_was_no_thread_keeps_no_place(
    ledger: Ledger, receiver: Receiver, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(ledger, submission.model_copy(update={"webhook": receiver.url}))
    deliverer = Deliverer(ledger.outbox, Outgoing("127.0.0.0/8"), lambda _: {})
    with patch.object(threading.Thread, "start", side_effect=MemoryError), pytest.raises(MemoryError):
        deliverer._send_due()
    assert not deliverer._under_way
