"""Tasks wait until there is memory for their images."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from api_tests.support.wait import wait_until
from touchstone.engine import Answer, Logits, PlanOf, Query, Task
from touchstone.engine.scheduler.device_thread import DeviceThread, TaskHandle
from touchstone.errors import JobCanceled

ROOM = 100


class HeldOracle:
    """Answers once it is told to."""

    device, rows, fixed_rows, shared = torch.device("cpu"), 64, 64, False

    def __init__(self) -> None:
        self.go = threading.Event()

    def answer(self, queries: list[Query]) -> list[Answer]:
        self.go.wait(0.01)
        return [Answer(torch.zeros(len(query), 2)) for query in queries]


class Site:
    """A thread with room for some memory, and the names of the plans that have begun."""

    def __init__(self) -> None:
        self.thread, self.oracle = DeviceThread("test", memory=ROOM), HeldOracle()
        self.begun: list[str] = []

    def _plan(self, name: str) -> PlanOf[str]:
        self.begun.append(name)
        while not self.oracle.go.is_set():
            yield Logits(torch.zeros(1, 1, 2, 2))
        return name

    def submit(self, name: str, memory: int, *, expires: bool = True) -> TaskHandle:
        task = Task(self._plan(name), self.oracle, memory=memory, expires=expires)  # type: ignore[arg-type]
        return self.thread.submit(task)

    def wait_for(self, *begun: str) -> None:
        """Wait until these have begun, and the thread has looked at the others since."""
        wait_until(lambda: set(begun) <= set(self.begun))
        steps = self.thread.steps
        wait_until(lambda: self.thread.steps > steps + 1)
        assert self.begun == list(begun)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.oracle.go.set()
    site.thread.stop()


def test_task_without_room_waits_for_the_end_of_others(site: Site) -> None:
    first, second = site.submit("first", 70), site.submit("second", 40)
    site.wait_for("first")
    site.oracle.go.set()
    assert (first.result(), second.result()) == ("first", "second")


def test_small_tasks_pass_large_ones_that_wait_and_no_large_one_does(site: Site) -> None:
    handles = [site.submit("first", 70), site.submit("second", 40), site.submit("third", 30)]
    handles += [site.submit("small", 1), site.submit("free", 0)]
    site.wait_for("first", "small", "free")
    site.oracle.go.set()
    assert [handle.result() for handle in handles] == ["first", "second", "third", "small", "free"]
    assert site.begun[3:] == ["second", "third"]


def test_task_larger_than_the_memory_runs_alone(site: Site) -> None:
    handles = [site.submit("huge", 10 * ROOM), site.submit("other", 5)]
    site.wait_for("huge")
    site.oracle.go.set()
    assert [handle.result() for handle in handles] == ["huge", "other"]


def test_waiting_task_can_be_canceled_and_the_last_queries_of_a_job_do_not_wait(site: Site) -> None:
    site.submit("first", 70)
    waiting = site.submit("second", 40)
    site.submit("last", 40, expires=False)
    site.wait_for("first", "last")
    waiting.cancel()
    with pytest.raises(JobCanceled):
        waiting.result()
