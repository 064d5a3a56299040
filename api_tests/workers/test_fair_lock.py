"""The lock of model trials: one at a time, tenants take turns, and a waiting trial holds nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx
from touchstone.ledger.records import Submission
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare
from touchstone.registration.trial import Trial
from touchstone.settings import Settings
from workers.fair_lock import FairLock, Ticket
from workers.trials import Trials

WaitInLine = Callable[[str], Ticket]


@pytest.fixture
def fair_lock() -> FairLock:
    return FairLock()


@pytest.fixture
def wait_in_line(fair_lock: FairLock) -> Iterator[WaitInLine]:
    """Put a waiter of a tenant in line until the test ends."""
    with ExitStack() as line:
        yield lambda tenant: line.enter_context(fair_lock.wait_in_line(tenant))


def serve_next(waiting: list[Ticket]) -> Ticket:
    """The waiter whose turn it is, after its turn."""
    [ticket] = [ticket for ticket in waiting if ticket.acquire(timeout=0)]
    assert not any(other.acquire(timeout=0) for other in waiting if other is not ticket), "one at a time"
    waiting.remove(ticket)
    ticket.release()
    return ticket


def test_tenant_with_many_waiting_delays_another_by_one_turn_only(wait_in_line: WaitInLine) -> None:
    waiting = [wait_in_line("them") for _ in range(5)]
    first, second = waiting[:2]
    assert first.acquire(timeout=0)
    waiting += [wait_in_line("us"), wait_in_line("us")]
    first.release()
    waiting.remove(first)
    order = [serve_next(waiting) for _ in range(6)]
    assert [ticket.tenant for ticket in order] == ["us", "them", "us", "them", "them", "them"]
    assert order[1] is second, "within a tenant the oldest first"


def test_tenant_that_keeps_returning_alternates_with_others(wait_in_line: WaitInLine) -> None:
    waiting = [wait_in_line("them"), wait_in_line("them"), wait_in_line("us")]
    order = []
    for _ in range(4):
        order.append(serve_next(waiting).tenant)
        if order[-1] == "us":
            waiting.append(wait_in_line("us"))
    assert order == ["them", "us", "them", "us"]


def test_waiter_that_gives_up_does_not_block_the_next(fair_lock: FairLock, wait_in_line: WaitInLine) -> None:
    with fair_lock.wait_in_line("them"):
        late = wait_in_line("us")
        assert not late.acquire(timeout=0)
    assert late.acquire(timeout=0)


def test_waiter_is_woken_when_the_lock_is_released(wait_in_line: WaitInLine) -> None:
    first, second = wait_in_line("them"), wait_in_line("us")
    assert first.acquire(timeout=0)
    threading.Timer(0.05, first.release).start()
    began = time.monotonic()
    assert second.acquire(timeout=10)
    assert time.monotonic() - began < 5


def submission_of(tenant: str) -> Submission:
    submission = prepare(Registration.parse(REGISTRATION_FIELDS), linear_onnx(), limit=2**20)
    return submission.model_copy(update={"tenant": tenant})


def test_trials_wait_in_line_by_the_tenant_of_the_registration(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets: list[Ticket] = []

    def run(_: Trial, __: object, ___: object, ticket: Ticket, **_more: object) -> None:
        tickets.append(ticket)
        raise InterruptedError

    monkeypatch.setattr(Trial, "run", run)
    trials = Trials()
    for tenant in ("them", "us"):
        with pytest.raises(InterruptedError):
            trials(submission_of(tenant), bytes, settings, started=lambda _: None, report=lambda *_: None)
    assert [(ticket.lock, ticket.tenant) for ticket in tickets] == [
        (trials.lock, "them"),
        (trials.lock, "us"),
    ]
