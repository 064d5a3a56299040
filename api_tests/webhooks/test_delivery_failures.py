"""A delivery that fails is tried again under its id or given up, and neither holds up nor loses another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import redis

from api_tests.support.dns import PUBLIC_ADDRESS, fake_resolver
from api_tests.support.wait import TIMEOUT_SECONDS
from api_tests.support.webhook_jobs import SECRET, finish_job, wait_for_deliveries, write_pings
from api_tests.support.webhook_receiver import Receiver, reply_after, reply_with, run_receiver
from touchstone.errors import WebhookConflict
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.ledger.webhooks import deliveries, dispatcher, outbox, signatures
from touchstone.ledger.webhooks.dispatcher import WebhookDispatcher
from touchstone.ledger.webhooks.endpoints import WebhookEndpoint
from touchstone.ledger.webhooks.outbox import ClaimedDelivery
from touchstone.net.outbound import OutboundClient

pytestmark = pytest.mark.usefixtures("fast_retries")


def make_due(server: redis.Redis) -> None:
    """As if the lease of everything that is under way had run out, and every pause were over."""
    for tenant in server.zrange("ts:deliveries:tenants", 0, -1):
        for there in server.zrange(f"ts:deliveries:receivers:{tenant}", 0, -1):
            for name in server.zrange(f"ts:deliveries:due:{there}", 0, -1):
                server.zadd(f"ts:deliveries:due:{there}", {name: 1})
            server.zadd(f"ts:deliveries:receivers:{tenant}", {there: 1})
        server.zadd("ts:deliveries:tenants", {tenant: 1})


def claim(ledger: Ledger) -> ClaimedDelivery:
    [sending] = ledger.outbox.claim({})
    return sending


def test_failed_delivery_is_retried_under_the_same_id(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    receiver.next_actions = [
        reply_with(500),
        reply_with(302, Location="http://127.0.0.1:1/"),
        reply_with(429, b"x" * 100),
    ]
    start_dispatcher()
    finish_job(ledger, submission)
    [delivery] = wait_for_deliveries(ledger)
    assert delivery.status == "delivered"
    assert len({message.id for message in receiver.messages}) == 1
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [
        (500, "refused"),
        (302, "redirected"),
        (429, "refused"),
        (204, None),
    ]


def test_delivery_fails_after_ten_attempts_and_can_be_replayed(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    receiver.next_actions = [reply_with(500)] * 10
    start_dispatcher()
    finish_job(ledger, submission)
    [delivery] = wait_for_deliveries(ledger)
    assert (delivery.status, delivery.due_at, len(delivery.attempts)) == ("failed", None, 10)
    TenantLedger.of(ledger, LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(11)[10].id == delivery.id
    [delivery] = wait_for_deliveries(ledger)
    assert (delivery.status, len(delivery.attempts)) == ("delivered", 11)


def test_retry_delays_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    hours = [(signatures.retry_delay(failures) or 0) / 3600 for failures in range(1, 10)]
    assert hours == pytest.approx([5 / 3600, 1 / 12, 0.5, 2, 5, 10, 14, 20, 24], rel=0.11)
    assert signatures.retry_delay(10) is None
    assert len({signatures.retry_delay(4) for _ in range(5)}) > 1
    assert signatures.retry_delay(1, retry_after=90) == 90
    assert signatures.retry_delay(1, retry_after=1e9) == 24 * 3600


def test_status_410_disables_the_endpoint_and_a_delivered_ping_enables_it(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    receiver.next_actions = [reply_with(410)]
    job = finish_job(ledger, submission)
    start_dispatcher()
    [delivery] = wait_for_deliveries(ledger)
    assert (delivery.status, [attempt.status for attempt in delivery.attempts]) == ("failed", [410])
    assert TenantLedger.of(ledger, LOCAL).endpoints.read(endpoint.id).disabled_at is not None
    finish_job(ledger, submission)
    assert [one.job for one in TenantLedger.of(ledger, LOCAL).deliveries.find()[0]] == [job.id]
    with pytest.raises(WebhookConflict, match="the endpoint is disabled"):
        TenantLedger.of(ledger, LOCAL).deliveries.replay(delivery.id)
    ping = TenantLedger.of(ledger, LOCAL).endpoints.ping(endpoint.id)
    assert receiver.wait(2)[1].verify(SECRET)["data"] == {"endpoint": endpoint.id}
    wait_for_deliveries(ledger, count=2)
    assert TenantLedger.of(ledger, LOCAL).deliveries.read(ping.id).status == "delivered"
    assert TenantLedger.of(ledger, LOCAL).endpoints.read(endpoint.id).disabled_at is None
    TenantLedger.of(ledger, LOCAL).deliveries.replay(delivery.id)
    assert receiver.wait(3)[2].id == delivery.id


def test_repeated_ping_script_makes_one_delivery(ledger: Ledger, endpoint: WebhookEndpoint) -> None:
    first, second = (
        ledger.scripts.run("webhooks/ping", LOCAL, endpoint.id, "msg_" + "0" * 40) for _ in range(2)
    )
    assert first == second
    assert len(ledger.outbox.claim({})) == 1


def test_pending_delivery_to_a_deleted_endpoint_fails(
    ledger: Ledger,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    start_dispatcher: Any,
    submission: Submission,
) -> None:
    finish_job(ledger, submission)
    TenantLedger.of(ledger, LOCAL).endpoints.delete(endpoint.id)
    start_dispatcher()
    [delivery] = wait_for_deliveries(ledger)
    assert [attempt.error for attempt in delivery.attempts] == ["endpoint_deleted"]
    assert receiver.messages == []
    with pytest.raises(WebhookConflict, match="deleted"):
        TenantLedger.of(ledger, LOCAL).deliveries.replay(delivery.id)


@pytest.mark.usefixtures("endpoint")
def test_delivery_of_a_dead_sender_is_sent_by_another(
    ledger: Ledger,
    receiver: Receiver,
    start_dispatcher: Any,
    submission: Submission,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish_job(ledger, submission)
    dead = claim(ledger)
    make_due(ledger.client)
    with monkeypatch.context() as dying:
        dying.setattr(WebhookDispatcher, "_record", lambda *_: None)
        one = start_dispatcher()
        receiver.wait()
        one.stop()
    assert ledger.outbox.claim({}) == []
    make_due(ledger.client)
    start_dispatcher()
    first, second = receiver.wait(2)
    assert first.id == second.id == dead.delivery.id
    assert first.verify(SECRET) == second.verify(SECRET)
    [delivery] = wait_for_deliveries(ledger)
    assert not ledger.outbox.record(dead, deliveries.AttemptOutcome(ms=1, status=500, error="refused"))
    assert TenantLedger.of(ledger, LOCAL).deliveries.read(delivery.id) == delivery
    assert len(delivery.attempts) == 1


def test_attempt_recorded_twice_counts_once(
    ledger: Ledger, endpoint: WebhookEndpoint, submission: Submission
) -> None:
    finish_job(ledger, submission)
    sending = claim(ledger)
    attempt = deliveries.AttemptOutcome(ms=1, status=500, error="refused")
    assert all(ledger.outbox.record(sending, attempt, retry_after=60) for _ in range(2))
    [delivery] = TenantLedger.of(ledger, LOCAL).deliveries.find()[0]
    assert (len(delivery.attempts), delivery.status) == (1, "pending")
    assert delivery.due_at is not None
    assert 20 < delivery.due_at.timestamp() - time.time() <= 70


def test_hanging_receiver_does_not_delay_other_receivers(
    ledger: Ledger,
    receiver: Receiver,
    start_dispatcher: Any,
    submission: Submission,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_SECONDS", 2 * TIMEOUT_SECONDS)
    go_on = threading.Event()
    with run_receiver() as slow:
        slow.next_actions = [reply_after(go_on)] * 40
        for _ in range(40):
            finish_job(ledger, submission.model_copy(update={"webhook": slow.url}))
        elsewhere = receiver.url.replace("127.0.0.1", "elsewhere.example")
        finish_job(ledger, submission.model_copy(update={"webhook": elsewhere}))
        start_dispatcher(OutboundClient("127.0.0.0/8", resolver=fake_resolver("127.0.0.1")))
        receiver.wait()
        assert len(slow.messages) <= outbox.MAX_PER_RECEIVER
        go_on.set()
        slow.wait(40)
        assert len(wait_for_deliveries(ledger, count=41)) == 41


def test_tenant_with_many_receivers_leaves_capacity_for_other_tenants(
    ledger: Ledger, submission: Submission
) -> None:
    for host in range(40):
        hooked = {"tenant": "greedy", "webhook": f"https://{host}.example/"}
        finish_job(ledger, submission.model_copy(update=hooked))
    theirs = finish_job(ledger, submission.model_copy(update={"webhook": "https://a.example/"}))
    taken = ledger.outbox.claim({})
    assert [one.delivery.tenant for one in taken].count("greedy") == outbox.MAX_PER_TENANT
    assert taken[1].delivery.job == theirs.id, "tenants take turns"
    under_way = Counter(one.receiver for one in taken)
    finish_job(ledger, submission.model_copy(update={"webhook": "https://a.example/"}))
    assert [one.delivery.tenant for one in ledger.outbox.claim(under_way)] == [LOCAL]


def test_tenant_with_thousands_of_hanging_receivers_does_not_hide_another_tenants(ledger: Ledger) -> None:
    write_pings(ledger, "greedy", "https://%d.example/", 1300)
    hanging = Counter(one.receiver for one in ledger.outbox.claim({}))
    assert hanging.total() == outbox.MAX_PER_TENANT
    write_pings(ledger, "modest", "https://%d.example/", 1)
    assert [one.delivery.tenant for one in ledger.outbox.claim(hanging)] == ["modest"]


def test_tenants_that_fill_the_dispatcher_leave_a_reserve_for_others(ledger: Ledger) -> None:
    for tenant in ("greedy", "grabby", "grasping"):
        write_pings(ledger, tenant, "https://%d.example/", 40)
    hanging = Counter(one.receiver for one in ledger.outbox.claim({}))
    assert hanging.total() == outbox.MAX_IN_FLIGHT
    for tenant in ("modest", "humble"):
        write_pings(ledger, tenant, "https://%d.example/", 2)
    assert sorted(one.delivery.tenant for one in ledger.outbox.claim(hanging)) == ["humble", "modest"]


@pytest.mark.parametrize(
    "urls",
    [
        "https://hanging.example:%d/",
        "https://h%d.EXAMPLE./",
        "http://[2001:db8::1]:%d/",
        "https://h.example?%d",
    ],
)
def test_ports_letter_case_and_paths_make_no_new_receivers(ledger: Ledger, urls: str) -> None:
    write_pings(ledger, "greedy", urls.replace("h%d.EXAMPLE.", "h.exAMPLe.:%d"), 20)
    write_pings(ledger, "modest", urls.replace("h%d.EXAMPLE.", "h.example:%d"), 2)
    taken = ledger.outbox.claim({})
    assert Counter(one.delivery.tenant for one in taken) == {
        "greedy": outbox.MAX_PER_RECEIVER,
        "modest": 2,
    }
    assert len({one.receiver for one in taken}) == 2


def test_deliveries_that_an_earlier_version_queued_are_sent(ledger: Ledger) -> None:
    write_pings(ledger, LOCAL, "https://h.example:%d/", 700)
    waiting = f"ts:deliveries:due:{LOCAL} h.example"
    ledger.client.delete(waiting, f"ts:deliveries:receivers:{LOCAL}", "ts:deliveries:tenants")
    for number in range(1, 701):
        receiver = f"{LOCAL} https://h.example:{number}"
        ledger.client.hset(f"ts:delivery:msg_{LOCAL}{number}", "receiver", receiver)
        ledger.client.zadd(f"ts:deliveries:due:{receiver}", {f"msg_{LOCAL}{number}": number})
        ledger.client.zadd("ts:deliveries:receivers", {receiver: number})
    assert len(ledger.outbox.claim({})) == outbox.MAX_PER_RECEIVER
    ledger.outbox.claim({})
    assert ledger.client.zcard(waiting) == 700
    assert list(ledger.client.scan_iter("ts:deliveries:due:*")) == [waiting]
    assert not ledger.client.exists("ts:deliveries:receivers")


def test_delivery_that_an_earlier_version_still_writes_is_sent(ledger: Ledger) -> None:
    write_pings(ledger, LOCAL, "https://h.example:%d/", 1)
    ledger.client.delete("ts:deliveries:tenants", f"ts:deliveries:receivers:{LOCAL}")
    ledger.client.zadd("ts:deliveries:receivers", {f"{LOCAL} h.example": 1})
    assert len(ledger.outbox.claim({})) == 1
    assert not ledger.client.exists("ts:deliveries:receivers")


def test_delivery_to_a_hanging_receiver_times_out_and_is_retried(
    ledger: Ledger,
    receiver: Receiver,
    start_dispatcher: Any,
    submission: Submission,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_SECONDS", 1.0)
    go_on = threading.Event()
    receiver.next_actions = [reply_after(go_on)]
    start_dispatcher()
    finish_job(ledger, submission.model_copy(update={"webhook": receiver.url}))
    [delivery] = wait_for_deliveries(ledger)
    go_on.set()
    assert [attempt.error for attempt in delivery.attempts] == ["timed_out", None]
    assert delivery.attempts[0].ms >= 1000


def test_host_name_that_resolves_to_private_address_after_the_check_is_refused(
    ledger: Ledger, receiver: Receiver, start_dispatcher: Any, submission: Submission
) -> None:
    outgoing = OutboundClient(resolver=fake_resolver(PUBLIC_ADDRESS, "127.0.0.1"))
    url = f"https://rebinding.example:{receiver.port}/"
    outgoing.check(url)
    finish_job(ledger, submission.model_copy(update={"webhook": url}))
    start_dispatcher(outgoing)
    [delivery] = wait_for_deliveries(ledger)
    assert {(attempt.status, attempt.error) for attempt in delivery.attempts} == {(None, "address_refused")}
    assert receiver.messages == []


def test_delivery_without_a_thread_is_not_counted_as_in_progress(
    ledger: Ledger, receiver: Receiver, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_job(ledger, submission.model_copy(update={"webhook": receiver.url}))
    deliverer = WebhookDispatcher(ledger.outbox, OutboundClient("127.0.0.0/8"), lambda _: {})
    with patch.object(threading.Thread, "start", side_effect=MemoryError), pytest.raises(MemoryError):
        deliverer._send_due()
    assert not deliverer._in_flight
