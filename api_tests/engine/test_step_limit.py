"""Work of plans between two passes is timed, and what takes too long ends without harm to others."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from touchstone.engine import Answer, Batcher, Engine, Logits, Loop, PlanOf, Query, Task, repeat
from touchstone.engine.rows import HostNumbers
from touchstone.engine.scheduler import step_limit
from touchstone.engine.scheduler.step_limit import measure_slowness
from touchstone.errors import OutOfMemory, TimeExceeded

LIMIT = 0.05


class EasyOracle:
    """Answers at once."""

    device, rows, fixed_rows, shared = torch.device("cpu"), 64, 64, True

    def answer(self, queries: list[Query]) -> list[Answer]:
        return [Answer(torch.zeros(len(query), 2)) for query in queries]


def query() -> Logits:
    return Logits(torch.zeros(1, 1, 2, 2))


def compute(seconds: float) -> None:
    """Keep the processor busy for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def plan(*work: float) -> PlanOf[str]:
    """Compute for so many seconds after each answer."""
    yield query()
    for seconds in work:
        compute(seconds)
        yield query()
    return "done"


@dataclass(frozen=True)
class SlowLoop(Loop):
    """Rows whose steps compute."""

    x: Tensor
    seconds: Tensor  # (B,)
    left: HostNumbers

    def step(self) -> PlanOf[SlowLoop]:
        yield Logits(self.x)
        compute(float(self.seconds.sum()))
        return replace(self, left=self.left.add(-1))


def loop_plan(seconds: float, steps: int) -> PlanOf[str]:
    one = SlowLoop(torch.zeros(1, 1, 2, 2), torch.tensor([seconds]), HostNumbers.full(1, steps))
    yield from repeat(one)
    return "done"


def run(*plans: PlanOf[str]) -> list[Any]:
    """What each returned, or what ended it."""
    batcher, ended, oracle = Batcher(), dict[int, Any](), EasyOracle()
    batcher.step_limit = LIMIT
    for number, one in enumerate(plans):
        task = Task(one, oracle)  # type: ignore[arg-type]
        task.on_done = lambda result, error, number=number: ended.setdefault(number, error or result)
        batcher.add(task)
    while len(batcher):
        batcher.step()
    return [ended[number] for number in range(len(plans))]


def test_step_that_computes_for_too_long_ends_its_task_alone() -> None:
    slow, quick = run(plan(0, 3 * LIMIT, 0), plan(*[LIMIT / 10] * 20))
    assert quick == "done"
    assert isinstance(slow, TimeExceeded)
    assert (slow.code, slow.extra["step"], slow.extra["limit"]) == ("time_exceeded", 3, LIMIT)
    assert slow.extra["seconds"] > 2.9 * LIMIT
    assert "step 3" in slow.detail
    assert "smaller image" in slow.detail


def test_long_last_step_keeps_its_result() -> None:
    def last() -> PlanOf[str]:
        yield query()
        compute(3 * LIMIT)
        return "done"

    assert run(last()) == ["done"]


def test_time_that_others_take_is_not_counted() -> None:
    def waiting() -> PlanOf[str]:
        yield query()
        time.sleep(3 * LIMIT)
        yield query()
        return "done"

    assert run(waiting()) == ["done"]


def test_loop_whose_steps_compute_for_too_long_ends_alone() -> None:
    slow, quick = run(loop_plan(3 * LIMIT, 1000), loop_plan(0, 3))
    assert (quick, slow.code) == ("done", "time_exceeded")


def test_memory_that_runs_out_between_two_passes_fails_the_job_as_such() -> None:
    def greedy() -> PlanOf[str]:
        yield query()
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    failed, other = run(greedy(), plan(0))
    assert isinstance(failed, OutOfMemory)
    assert "step 2" in failed.detail
    assert other == "done"


def test_limit_grows_with_the_measured_slowness(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= measure_slowness() < math.inf
    monkeypatch.setattr(step_limit, "_time_trial", lambda: 3 * step_limit.REFERENCE_SECONDS)
    assert measure_slowness() == pytest.approx(3)
    monkeypatch.setattr(step_limit, "_time_trial", lambda: step_limit.REFERENCE_SECONDS / 3)
    assert measure_slowness() == 1


def test_engine_ends_a_task_beyond_its_limit() -> None:
    engine = Engine("cpu", step_seconds=LIMIT / 50)
    try:
        task = engine.start(plan(20 * engine.step_limit), EasyOracle())  # type: ignore[arg-type]
        with pytest.raises(TimeExceeded, match="computed for"):
            task.result()
    finally:
        engine.stop()
