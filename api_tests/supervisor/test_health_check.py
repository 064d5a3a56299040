"""When the supervisor takes an API for hung: a busy one gets more time than an idle one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from touchstone.supervisor import processes
from touchstone.supervisor.processes import BUSY_PATIENCE, BUSY_SHARE, MAX_TIMEOUTS, HealthCheck
from touchstone.supervisor.work_meter import WorkMeter, read_cpu_seconds


class Child:
    """A process that is never started."""

    name = "API"

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1


def count_checks_until_killed(monkeypatch: pytest.MonkeyPatch, share: Callable[[int], float]) -> int:
    """Checks of a silent process until it is ended; before the n-th it used `share(n)` of a processor."""
    child = Child()
    check = HealthCheck(child, lambda: True, lambda _: None)  # type: ignore[arg-type]
    for number in range(1, 1000):
        monkeypatch.setattr(processes.WorkMeter, "take_share", lambda _, number=number: share(number))
        check._check()
        if child.kills:
            return number
    raise AssertionError("it was never ended")


def test_silent_process_that_does_not_work_is_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_checks_until_killed(monkeypatch, lambda _: BUSY_SHARE / 2) == MAX_TIMEOUTS


def test_silent_process_that_works_gets_more_time_and_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert count_checks_until_killed(monkeypatch, lambda _: 1.0) == MAX_TIMEOUTS * BUSY_PATIENCE


def test_process_that_stops_working_is_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = count_checks_until_killed(monkeypatch, lambda number: 1.0 if number <= BUSY_PATIENCE else 0.0)
    assert ended == BUSY_PATIENCE + MAX_TIMEOUTS - 1


def test_answer_ends_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    child, silent = Child(), iter([True, True, True, False] * 5)
    check = HealthCheck(child, lambda: next(silent), lambda _: None)  # type: ignore[arg-type]
    monkeypatch.setattr(processes.WorkMeter, "take_share", lambda _: 0.0)
    for _ in range(20):
        check._check()
    assert child.kills == 0


def test_meter_measures_the_work_of_a_process() -> None:
    child = Child()
    meter, began = WorkMeter(child), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert meter.take_share() > 0
    time.sleep(0.05)
    child.pid = os.getppid()
    assert meter.take_share() == 0, "another process"
    assert read_cpu_seconds(2**22 + 1) == 0, "no such process"
