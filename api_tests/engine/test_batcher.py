from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

import touchstone
from api_tests.support.linear_models import greyish, linear_model
from touchstone.engine import Answer, Batcher, Counted, CrossEntropy, Engine, Goal, Gradient, Logits, Task
from touchstone.engine.scheduler import batcher as batching
from touchstone.errors import Canceled, DeadlineExceeded, OutOfMemory, WorkerStopping


class Recorder:
    """An oracle that notes the rows of every pass, and fails when told to."""

    knowledge = "white-box"
    device = torch.device("cpu")
    fixed_rows = 16

    def __init__(self, rows=8, capacity=10**9, poison=None, wait=0.0, shared=True):
        self.rows = rows
        self.shared = shared
        self.passes = []
        self.capacity = capacity
        self.poison = poison
        self.wait = wait

    def answer(self, queries):
        rows = [len(query) for query in queries]
        time.sleep(self.wait)
        if sum(rows) > self.capacity:
            raise torch.OutOfMemoryError("no room")
        if self.poison is not None and any(bool((query.x == self.poison).any()) for query in queries):
            raise RuntimeError("this image breaks the model")
        self.passes.append(rows)
        return [
            Answer(query.x.flatten(1), query.x.flatten(1).sum(1), query.x)
            if isinstance(query, Gradient)
            else Answer(query.x.flatten(1))
            for query in queries
        ]


def gradient(rows, value=1.0):
    x = torch.full((rows, 1, 1, 2), value)
    return Gradient(x, CrossEntropy(Goal.of(torch.zeros(rows, dtype=torch.long), targeted=False)))


def asking(times, rows=1, value=1.0, kind=gradient):
    def plan():
        seen = []
        for _ in range(times):
            answer = yield kind(rows, value)
            seen.append(len(answer.logits))
        return seen

    return plan()


def looks(rows, value=1.0):
    return Logits(torch.full((rows, 1, 1, 2), value))


def run(batcher, *tasks):
    ended = {}
    for i, task in enumerate(tasks):
        task.done = lambda result, error, i=i: ended.setdefault(i, (result, error))
        batcher.add(task)
    while len(batcher):
        batcher.step()
    return [ended[i] for i in range(len(tasks))]


def test_no_two_tasks_share_a_pass_of_a_model_that_depends_on_the_batch():
    oracle = Recorder(shared=False)
    ended = run(Batcher(), *[Task(asking(2), oracle) for _ in range(3)])
    assert oracle.passes == [[1]] * 6
    assert [result for result, _ in ended] == [[1] * 2] * 3


def test_steps_of_independent_tasks_share_passes():
    oracle = Recorder()
    ended = run(Batcher(), *[Task(asking(5), oracle) for _ in range(8)])
    assert oracle.passes == [[1] * 8] * 5
    assert [result for result, _ in ended] == [[1] * 5] * 8


def test_gradients_and_looks_and_models_are_asked_apart():
    one, other = Recorder(), Recorder()
    run(Batcher(), Task(asking(2), one), Task(asking(2, kind=looks), one), Task(asking(2), other))
    assert one.passes == [[1]] * 4
    assert other.passes == [[1]] * 2


def test_a_large_question_is_sliced_and_a_small_one_waits_one_slice():
    oracle = Recorder(rows=8)
    large, small = Task(asking(1, rows=80), oracle), Task(asking(2), oracle)
    batcher = Batcher()
    order = []
    large.done = lambda *_: order.append("large")
    small.done = lambda *_: order.append("small")
    batcher.add(large)
    batcher.step()
    batcher.add(small)
    batcher.step()
    batcher.step()
    assert order == ["small"]
    assert [sorted(rows) for rows in oracle.passes] == [[8], [1, 7], [1, 7]]
    while len(batcher):
        batcher.step()
    assert order == ["small", "large"]
    assert large.queries == Counted(80, 80)


def test_an_owner_of_many_tasks_gets_no_more_of_a_pass_than_one_of_few():
    oracle = Recorder(rows=8)
    many = [Task(asking(1, rows=80), oracle, owner="many") for _ in range(12)]
    few = Task(asking(1, rows=16), oracle, owner="few")
    batcher = Batcher()
    for task in (*many, few):
        batcher.add(task)
    for _ in range(4):
        batcher.step()
    assert few.queries == Counted(16, 16), "half of each of four passes"
    assert [task.queries.forward for task in many] == [2, 2, 2, 2, *[1] * 8], "in turns"
    small = Task(asking(3), oracle, owner="small")
    batcher.add(small)
    for _ in range(3):
        batcher.step()
    assert small.ended or small.queries == Counted(3, 3), "in every pass"


def test_more_tasks_than_rows_take_turns():
    oracle = Recorder(rows=4)
    run(Batcher(), *[Task(asking(2), oracle) for _ in range(10)])
    assert all(len(rows) <= 4 for rows in oracle.passes)
    assert len(oracle.passes) <= 6


def test_running_out_of_memory_halves_the_batch_and_fails_no_task():
    oracle = Recorder(rows=16, capacity=3)
    ended = run(Batcher(), *[Task(asking(3), oracle) for _ in range(16)])
    assert [error for _, error in ended] == [None] * 16
    assert max(map(sum, oracle.passes)) <= 3


def test_larger_batches_are_tried_again_once_the_memory_may_be_back(monkeypatch):
    oracle, batcher = Recorder(rows=16, capacity=3), Batcher()
    run(batcher, *[Task(asking(1), oracle) for _ in range(16)])
    oracle.capacity = 16
    run(batcher, *[Task(asking(1), oracle) for _ in range(16)])
    assert max(map(sum, oracle.passes)) <= 3
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + batching.SHORT_SECONDS)
    run(batcher, *[Task(asking(1), oracle) for _ in range(16)])
    assert sum(oracle.passes[-1]) == 16


def test_a_row_that_never_fits_fails_its_own_task_alone():
    [(_, error)] = run(Batcher(), Task(asking(1), Recorder(capacity=0)))
    assert isinstance(error, OutOfMemory)


def test_an_image_that_breaks_the_model_fails_its_own_task_alone():
    oracle = Recorder(poison=13.0)
    ended = run(Batcher(), *[Task(asking(2, value=v), oracle) for v in (1.0, 13.0, 2.0)])
    assert [type(error) for _, error in ended] == [type(None), RuntimeError, type(None)]


def test_canceled_and_overdue_tasks_leave_between_two_steps():
    oracle = Recorder()
    batcher = Batcher()
    tasks = [Task(asking(10), oracle) for _ in range(3)]
    ended = {}
    for i, task in enumerate(tasks):
        task.done = lambda _, error, i=i: ended.setdefault(i, error)
        batcher.add(task)
    batcher.step()
    tasks[0].canceled = True
    tasks[1].deadline = time.monotonic() - 1
    batcher.step()
    assert isinstance(ended[0], Canceled)
    assert isinstance(ended[1], DeadlineExceeded)
    assert oracle.passes[1] == [1]


def test_a_deterministic_task_is_asked_alone_in_passes_of_one_size():
    oracle = Recorder(rows=64)
    run(Batcher(), Task(asking(1, rows=40), oracle, deterministic=True), Task(asking(1), oracle))
    assert [16] in oracle.passes
    assert [1] in oracle.passes
    assert [8] in oracle.passes


@pytest.fixture
def engine():
    engine = Engine(device="cpu")
    yield engine
    engine.stop()


def test_the_engine_runs_plans_of_many_threads(engine):
    oracle = Recorder(wait=0.002)
    results = []

    def work():
        results.append(engine.start(asking(5), oracle).result())

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1] * 5] * 16
    assert max(map(sum, oracle.passes)) > 1
    assert engine.figures()["batch_rows"]["count"] == len(oracle.passes)


def test_canceling_stops_the_questions_at_once(engine):
    oracle = Recorder(wait=0.01)
    running = engine.start(asking(10_000), oracle)
    time.sleep(0.05)
    running.cancel()
    with pytest.raises(Canceled):
        running.result()
    asked = len(oracle.passes)
    time.sleep(0.05)
    assert len(oracle.passes) == asked < 10_000


def test_a_deadline_is_kept(engine):
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        engine.start(asking(10_000), Recorder(wait=0.01), deadline=0.1).result()
    assert time.monotonic() - began < 30


def test_stopping_hands_running_tasks_back():
    engine = Engine(device="cpu")
    running = engine.start(asking(10_000), Recorder(wait=0.01))
    engine.stop()
    with pytest.raises(WorkerStopping):
        running.result()
    with pytest.raises(WorkerStopping):
        engine.start(asking(1), Recorder())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["_drop_overdue", "_share", "_answer", "_deliver", "_advance"])
def test_no_task_waits_for_ever_whatever_has_no_memory(engine, monkeypatch, name):
    """Where a step goes wrong halfway, its tasks end with what went wrong, and the next ones are served."""
    whole, calls = getattr(Batcher, name), itertools.count()

    def starved(*args):
        if next(calls) == 4:
            raise MemoryError
        return whole(*args)

    monkeypatch.setattr(Batcher, name, starved)
    oracle = Recorder(rows=2, wait=0.001)
    running = [engine.start(asking(5), oracle) for _ in range(3)]
    ends = [one._future.exception() for one in running]
    assert any(isinstance(end, MemoryError) for end in ends)
    assert all(isinstance(end, MemoryError | None) for end in ends)
    assert engine.start(asking(2), oracle).result() == [1, 1]
    assert not engine.busy


@pytest.mark.timeout(20)
def test_no_task_waits_for_ever_where_there_is_no_memory_to_abandon_it_either(engine, monkeypatch):
    faults = ["step", "abandon"]

    def starving(name):
        whole = getattr(Batcher, name)

        def starved(*args):
            if name in faults:
                faults.remove(name)
                raise MemoryError
            return whole(*args)

        monkeypatch.setattr(Batcher, name, starved)

    for name in tuple(faults):
        starving(name)
    assert engine.start(asking(2), Recorder())._future.result(10) == [1, 1]


def test_concurrent_one_image_jobs_equal_one_batch():
    module = linear_model(classes=10)
    x = greyish(12)
    model = touchstone.wrap(module)
    small = replace(model, oracle=replace(model.oracle, rows=5))
    seeds = list(range(12))
    one = touchstone.attack(model, x, None, "pgd", eps=0.01, seed=seeds, quantize=False)
    sliced = touchstone.attack(small, x, None, "pgd", eps=0.01, seed=seeds, quantize=False)
    assert torch.allclose(one.images, sliced.images, atol=1e-6)
    assert one.queries == sliced.queries
