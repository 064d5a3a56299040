"""Trials of models, one at a time: tenants take turns, and whoever waits holds nothing."""

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
def turns() -> FairLock:
    return FairLock()


@pytest.fixture
def come(turns: FairLock) -> Iterator[WaitInLine]:
    """Let one of a tenant stand in line, until the test ends."""
    with ExitStack() as line:
        yield lambda tenant: line.enter_context(turns.wait_in_line(tenant))


def serve_next(waiting: list[Ticket]) -> Ticket:
    """The one whose turn it is, after it has had it."""
    [turn] = [turn for turn in waiting if turn.acquire(timeout=0)]
    assert not any(other.acquire(timeout=0) for other in waiting if other is not turn), "one at a time"
    waiting.remove(turn)
    turn.release()
    return turn


def test_tenant_with_many_waiting_delays_another_by_one_turn_only(come: WaitInLine) -> None:
    waiting = [come("them") for _ in range(5)]
    first, second = waiting[:2]
    assert first.acquire(timeout=0)
    waiting += [come("us"), come("us")]
    first.release()
    waiting.remove(first)
    order = [serve_next(waiting) for _ in range(6)]
    assert [turn.tenant for turn in order] == ["us", "them", "us", "them", "them", "them"]
    assert order[1] is second, "within a tenant the oldest first"


def test_tenant_that_keeps_returning_alternates_with_others(come: WaitInLine) -> None:
    waiting = [come("them"), come("them"), come("us")]
    order = []
    for _ in range(4):
        order.append(serve_next(waiting).tenant)
        if order[-1] == "us":
            waiting.append(come("us"))
    assert order == ["them", "us", "them", "us"]


def test_waiter_that_gives_up_does_not_block_the_next(turns: FairLock, come: WaitInLine) -> None:
    with turns.wait_in_line("them"):
        late = come("us")
        assert not late.acquire(timeout=0)
    assert late.acquire(timeout=0)


def test_waiter_is_woken_when_the_lock_is_released(come: WaitInLine) -> None:
    first, second = come("them"), come("us")
    assert first.acquire(timeout=0)
    threading.Timer(0.05, first.release).start()
    began = time.monotonic()
    assert second.acquire(timeout=10)
    assert time.monotonic() - began < 5


def submission_of(tenant: str) -> Submission:
    asked = prepare(Registration.parse(REGISTRATION_FIELDS), linear_onnx(), limit=2**20)
    return asked.model_copy(update={"tenant": tenant})


def test_trials_wait_in_line_by_the_tenant_of_the_registration(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates: list[Ticket] = []

    def run(_: Trial, __: object, ___: object, gate: Ticket) -> None:
        gates.append(gate)
        raise InterruptedError

    monkeypatch.setattr(Trial, "run", run)
    trials = Trials()
    for tenant in ("them", "us"):
        with pytest.raises(InterruptedError):
            trials(submission_of(tenant), bytes, settings, started=lambda _: None, report=lambda *_: None)
    assert [(gate.lock, gate.tenant) for gate in gates] == [(trials.lock, "them"), (trials.lock, "us")]
