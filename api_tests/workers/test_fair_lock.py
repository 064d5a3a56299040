"""Trials of models, one at a time: tenants take turns, and whoever waits holds nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from api_tests.support.own_models import SAID, linear_onnx
from touchstone.ledger.records import Submission
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare
from touchstone.registration.trial import Trial
from touchstone.settings import Settings
from workers.fair_lock import Turn, Turns
from workers.trials import Trials

Come = Callable[[str], Turn]


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def come(turns: Turns) -> Iterator[Come]:
    """Let one of a tenant stand in line, until the test ends."""
    with ExitStack() as line:
        yield lambda tenant: line.enter_context(turns.stand_in_line(tenant))


def rotate(waiting: list[Turn]) -> Turn:
    """The one whose turn it is, after it has had it."""
    [turn] = [turn for turn in waiting if turn.acquire(timeout=0)]
    assert not any(other.acquire(timeout=0) for other in waiting if other is not turn), "one at a time"
    waiting.remove(turn)
    turn.release()
    return turn


def test_who_fills_the_line_makes_another_wait_for_one_turn(come: Come) -> None:
    waiting = [come("them") for _ in range(5)]
    first, second = waiting[:2]
    assert first.acquire(timeout=0)
    waiting += [come("us"), come("us")]
    first.release()
    waiting.remove(first)
    order = [rotate(waiting) for _ in range(6)]
    assert [turn.tenant for turn in order] == ["us", "them", "us", "them", "them", "them"]
    assert order[1] is second, "within a tenant the oldest first"


def test_who_comes_again_and_again_is_not_always_next(come: Come) -> None:
    waiting = [come("them"), come("them"), come("us")]
    order = []
    for _ in range(4):
        order.append(rotate(waiting).tenant)
        if order[-1] == "us":
            waiting.append(come("us"))
    assert order == ["them", "us", "them", "us"]


def test_who_gives_up_holds_up_nobody(turns: Turns, come: Come) -> None:
    with turns.stand_in_line("them"):
        late = come("us")
        assert not late.acquire(timeout=0)
    assert late.acquire(timeout=0)


def test_who_waits_is_woken(come: Come) -> None:
    first, second = come("them"), come("us")
    assert first.acquire(timeout=0)
    threading.Timer(0.05, first.release).start()
    began = time.monotonic()
    assert second.acquire(timeout=10)
    assert time.monotonic() - began < 5


def submission_of(tenant: str) -> Submission:
    asked = prepare(Registration.parse(SAID), linear_onnx(), limit=2**20)
    return asked.model_copy(update={"tenant": tenant})


def test_registrations_stand_in_line_for_their_tenants(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates: list[Turn] = []

    def run(_: Trial, __: object, ___: object, gate: Turn) -> None:
        gates.append(gate)
        raise InterruptedError

    monkeypatch.setattr(Trial, "run", run)
    trials = Trials()
    for tenant in ("them", "us"):
        with pytest.raises(InterruptedError):
            trials(submission_of(tenant), bytes, settings, started=lambda _: None, report=lambda *_: None)
    assert [(gate.turns, gate.tenant) for gate in gates] == [(trials.turns, "them"), (trials.turns, "us")]
