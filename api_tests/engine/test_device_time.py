"""A device is shared by the seconds that each owner and model has had of it, not by passes."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch

from touchstone.engine import Answer, Batcher, CrossEntropy, Goal, Gradient, Task
from touchstone.engine.scheduler.device_time import MAX_ACCOUNTS, DeviceTime
from touchstone.engine.scheduler.pass_queue import OWNER_ROWS, SLICE_SECONDS


class Clock:
    """A clock that moves only with the passes of `TimedOracle`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class TimedOracle:
    """An oracle each row of which takes so long."""

    device = torch.device("cpu")
    rows, fixed_rows, shared = 64, 16, True

    def __init__(self, clock: Clock, row_seconds: float) -> None:
        self.clock, self.row_seconds = clock, row_seconds
        self.passes: list[float] = []

    def answer(self, queries: Sequence[Any]) -> list[Answer]:
        rows = sum(map(len, queries))
        self.clock.now += rows * self.row_seconds
        self.passes.append(rows * self.row_seconds)
        return [Answer(query.x.flatten(1), query.x.flatten(1).sum(1), query.x) for query in queries]


def ask(times: int, rows: int = 1) -> Generator[Gradient, Answer, None]:
    """A plan of so many queries."""
    goal = Goal.of(torch.zeros(rows, dtype=torch.long), targeted=False)
    for _ in range(times):
        yield Gradient(torch.ones(rows, 1, 1, 2), CrossEntropy(goal))


def run(clock: Clock, tasks: Sequence[Task]) -> list[float]:
    """When each task had ended."""
    batcher, ended = Batcher(), {}
    for task in tasks:
        task.on_done = lambda _result, _error, task=task: ended.setdefault(task, clock.now)
        batcher.add(task)
    while len(batcher):
        batcher.step()
    return [ended[task] for task in tasks]


def test_small_job_beside_twelve_large_ones_takes_little_longer_than_alone(clock: Clock) -> None:
    small, large = TimedOracle(clock, 0.003), TimedOracle(clock, 0.03)
    alone = 40 * 0.003
    ends = run(clock, [*(Task(ask(40), large) for _ in range(12)), Task(ask(40), small)])
    assert ends[-1] <= 3 * alone + 0.4


def test_large_job_beside_many_small_ones_gets_half_of_the_time(clock: Clock) -> None:
    small, large = TimedOracle(clock, 0.001), TimedOracle(clock, 0.1)
    alone = 10 * 0.1
    ends = run(clock, [*(Task(ask(400), small) for _ in range(16)), Task(ask(10), large)])
    assert ends[-1] <= 2.2 * alone
    assert max(ends[:-1]) > ends[-1], "there was work enough on the other model"


def test_owner_with_many_jobs_and_models_gets_no_more_time_than_one_with_one(clock: Clock) -> None:
    models = [TimedOracle(clock, 0.01 * n) for n in (1, 2, 3)]
    alone = 30 * 0.02
    many = [Task(ask(20), model, owner="many") for model in models for _ in range(20)]
    ends = run(clock, [*many, Task(ask(30), TimedOracle(clock, 0.02), owner="one")])
    assert ends[-1] <= 2 * alone + 2 * SLICE_SECONDS


def test_one_row_at_a_time_does_not_wait_for_passes_full_of_another_owners_rows(clock: Clock) -> None:
    model = TimedOracle(clock, 0.001)
    many = [Task(ask(200), model, owner="many") for _ in range(200)]
    ends = run(clock, [*many, Task(ask(40), model, owner="one")])
    assert ends[-1] <= 40 * 2 * OWNER_ROWS * 0.001 + 2 * 64 * 0.001
    assert model.passes[60:200] == [pytest.approx(64 * 0.001)] * 140, "full ones once it is alone"


def test_pass_of_a_slow_model_is_short_while_others_wait(clock: Clock) -> None:
    small, large = TimedOracle(clock, 0.01), TimedOracle(clock, 0.03)
    task = Task(ask(1, rows=128), large)
    run(clock, [task, Task(ask(500), small)])
    assert max(large.passes) <= SLICE_SECONDS
    run(clock, [Task(ask(1, rows=128), large)])
    assert max(large.passes) == pytest.approx(64 * 0.03), "nobody waits"


def test_time_not_asked_for_is_not_saved_up() -> None:
    time_of = DeviceTime[str]()
    for _ in range(100):
        time_of.charge(time_of.next(["busy"]), 1.0)
    turns = []
    for _ in range(6):
        turns.append(time_of.next(["busy", "late"]))
        time_of.charge(turns[-1], 1.0)
    assert turns.count("late") == 3


def test_equal_accounts_take_turns_in_order() -> None:
    time_of = DeviceTime[int]()
    turns = []
    for _ in range(6):
        turns.append(time_of.next([3, 1, 2]))
        time_of.charge(turns[-1], 0.5)
    assert turns == [3, 1, 2, 3, 1, 2]


def test_accounts_are_forgotten_that_were_not_charged_for_long() -> None:
    time_of = DeviceTime[int]()
    for account in range(10 * MAX_ACCOUNTS):
        time_of.charge(time_of.next([account]), 1.0)
    assert len(time_of._used) <= MAX_ACCOUNTS


def test_work_of_a_plan_between_passes_is_charged_to_its_owner(clock: Clock) -> None:
    model = TimedOracle(clock, 0.001)

    def slow_plan() -> Generator[Gradient, Answer, None]:
        for query in ask(50):
            answer = yield query
            clock.now += 0.1
            del answer

    other = TimedOracle(clock, 0.001)
    ends = run(clock, [Task(slow_plan(), model, owner="slow"), Task(ask(50), other, owner="quick")])
    assert ends[1] <= 0.3, "its queries go first, since the other has used more"
