from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone.engine import Answer, Batcher, CrossEntropy, Engine, Goal, Gradient, Logits, QueryCount, Task
from touchstone.engine.scheduler.pass_queue import LOW_MEMORY_SECONDS, PassQueue
from touchstone.errors import DeadlineExceeded, JobCanceled, OutOfMemory, WorkerStopping


class RecordingOracle:
    """An oracle that notes the rows of every pass, and fails where it is set to."""

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
            raise torch.OutOfMemoryError("out of memory")
        if self.poison is not None and any(bool((query.x == self.poison).any()) for query in queries):
            raise RuntimeError("this image breaks the model")
        self.passes.append(rows)
        return [
            Answer(query.x.flatten(1), query.x.flatten(1).sum(1), query.x)
            if isinstance(query, Gradient)
            else Answer(query.x.flatten(1))
            for query in queries
        ]


def gradient_query(rows, value=1.0):
    x = torch.full((rows, 1, 1, 2), value)
    return Gradient(x, CrossEntropy(Goal.of(torch.zeros(rows, dtype=torch.long), targeted=False)))


def query_plan(times, rows=1, value=1.0, kind=gradient_query):
    def plan():
        seen = []
        for _ in range(times):
            answer = yield kind(rows, value)
            seen.append(len(answer.logits))
        return seen

    return plan()


def logits_query(rows, value=1.0):
    return Logits(torch.full((rows, 1, 1, 2), value))


def run_tasks(batcher, *tasks):
    ended = {}
    for i, task in enumerate(tasks):
        task.on_done = lambda result, error, i=i: ended.setdefault(i, (result, error))
        batcher.add(task)
    while len(batcher):
        batcher.step()
    return [ended[i] for i in range(len(tasks))]


def test_tasks_of_a_batch_dependent_model_share_no_pass():
    oracle = RecordingOracle(shared=False)
    ended = run_tasks(Batcher(), *[Task(query_plan(2), oracle) for _ in range(3)])
    assert oracle.passes == [[1]] * 6
    assert [result for result, _ in ended] == [[1] * 2] * 3


def test_steps_of_independent_tasks_share_passes():
    oracle = RecordingOracle()
    ended = run_tasks(Batcher(), *[Task(query_plan(5), oracle) for _ in range(8)])
    assert oracle.passes == [[1] * 8] * 5
    assert [result for result, _ in ended] == [[1] * 5] * 8


def test_gradients_logits_and_models_are_queried_in_separate_passes():
    one, other = RecordingOracle(), RecordingOracle()
    run_tasks(
        Batcher(),
        Task(query_plan(2), one),
        Task(query_plan(2, kind=logits_query), one),
        Task(query_plan(2), other),
    )
    assert one.passes == [[1]] * 4
    assert other.passes == [[1]] * 2


def test_large_query_is_sliced_so_that_a_small_one_waits_one_slice():
    oracle = RecordingOracle(rows=8)
    large, small = Task(query_plan(1, rows=80), oracle), Task(query_plan(2), oracle)
    batcher = Batcher()
    order = []
    large.on_done = lambda *_: order.append("large")
    small.on_done = lambda *_: order.append("small")
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
    assert large.queries == QueryCount(80, 80)


def test_owner_of_many_tasks_gets_no_larger_share_of_a_pass():
    oracle = RecordingOracle(rows=8)
    many = [Task(query_plan(1, rows=80), oracle, owner="many") for _ in range(12)]
    few = Task(query_plan(1, rows=16), oracle, owner="few")
    batcher = Batcher()
    for task in (*many, few):
        batcher.add(task)
    for _ in range(4):
        batcher.step()
    assert few.queries == QueryCount(16, 16), "half of each of four passes"
    assert [task.queries.forward for task in many] == [2, 2, 2, 2, *[1] * 8], "in turns"
    small = Task(query_plan(3), oracle, owner="small")
    batcher.add(small)
    for _ in range(3):
        batcher.step()
    assert small.ended or small.queries == QueryCount(3, 3), "in every pass"


def test_tasks_take_turns_when_there_are_more_than_rows():
    oracle = RecordingOracle(rows=4)
    run_tasks(Batcher(), *[Task(query_plan(2), oracle) for _ in range(10)])
    assert all(len(rows) <= 4 for rows in oracle.passes)
    assert len(oracle.passes) <= 6


def test_out_of_memory_halves_the_batch_and_fails_no_task():
    oracle = RecordingOracle(rows=16, capacity=3)
    ended = run_tasks(Batcher(), *[Task(query_plan(3), oracle) for _ in range(16)])
    assert [error for _, error in ended] == [None] * 16
    assert max(map(sum, oracle.passes)) <= 3


def test_larger_batches_are_retried_some_time_after_out_of_memory(monkeypatch):
    oracle, batcher = RecordingOracle(rows=16, capacity=3), Batcher()
    run_tasks(batcher, *[Task(query_plan(1), oracle) for _ in range(16)])
    oracle.capacity = 16
    run_tasks(batcher, *[Task(query_plan(1), oracle) for _ in range(16)])
    assert max(map(sum, oracle.passes)) <= 3
    later = time.monotonic() + LOW_MEMORY_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    run_tasks(batcher, *[Task(query_plan(1), oracle) for _ in range(16)])
    assert sum(oracle.passes[-1]) == 16


def test_row_that_never_fits_fails_only_its_own_task():
    [(_, error)] = run_tasks(Batcher(), Task(query_plan(1), RecordingOracle(capacity=0)))
    assert isinstance(error, OutOfMemory)


def test_image_that_breaks_the_model_fails_only_its_own_task():
    oracle = RecordingOracle(poison=13.0)
    ended = run_tasks(Batcher(), *[Task(query_plan(2, value=v), oracle) for v in (1.0, 13.0, 2.0)])
    assert [type(error) for _, error in ended] == [type(None), RuntimeError, type(None)]


def test_canceled_and_overdue_tasks_end_between_two_steps():
    oracle = RecordingOracle()
    batcher = Batcher()
    tasks = [Task(query_plan(10), oracle) for _ in range(3)]
    ended = {}
    for i, task in enumerate(tasks):
        task.on_done = lambda _, error, i=i: ended.setdefault(i, error)
        batcher.add(task)
    batcher.step()
    tasks[0].canceled = True
    tasks[1].deadline = time.monotonic() - 1
    batcher.step()
    assert isinstance(ended[0], JobCanceled)
    assert isinstance(ended[1], DeadlineExceeded)
    assert oracle.passes[1] == [1]


def test_deterministic_task_is_queried_alone_in_passes_of_fixed_size():
    oracle = RecordingOracle(rows=64)
    run_tasks(
        Batcher(), Task(query_plan(1, rows=40), oracle, deterministic=True), Task(query_plan(1), oracle)
    )
    assert [16] in oracle.passes
    assert [1] in oracle.passes
    assert [8] in oracle.passes


@pytest.fixture
def engine():
    engine = Engine(device="cpu")
    yield engine
    engine.stop()


def test_engine_batches_plans_of_many_threads(engine):
    oracle = RecordingOracle(wait=0.002)
    results = []

    def work():
        results.append(engine.start(query_plan(5), oracle).result())

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1] * 5] * 16
    assert max(map(sum, oracle.passes)) > 1
    assert engine.metrics()["batch_rows"]["count"] == len(oracle.passes)


def test_cancel_stops_the_queries_at_once(engine):
    oracle = RecordingOracle(wait=0.01)
    running = engine.start(query_plan(10_000), oracle)
    time.sleep(0.05)
    running.cancel()
    with pytest.raises(JobCanceled):
        running.result()
    asked = len(oracle.passes)
    time.sleep(0.05)
    assert len(oracle.passes) == asked < 10_000


def test_task_ends_at_its_deadline(engine):
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        engine.start(query_plan(10_000), RecordingOracle(wait=0.01), deadline=0.1).result()
    assert time.monotonic() - began < 30


def test_stopped_engine_ends_running_tasks_and_refuses_new_ones():
    engine = Engine(device="cpu")
    running = engine.start(query_plan(10_000), RecordingOracle(wait=0.01))
    engine.stop()
    with pytest.raises(WorkerStopping):
        running.result()
    with pytest.raises(WorkerStopping):
        engine.start(query_plan(1), RecordingOracle())


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Batcher, "_drop_overdue"), (PassQueue, "_share"), (Batcher, "_answer"), (Batcher, "_deliver"),
        (Batcher, "_advance"),
    ],
)  # fmt: skip
def test_every_task_ends_wherever_a_step_runs_out_of_memory(engine, monkeypatch, owner, name):
    """Where a step goes wrong halfway, its tasks end with what went wrong, and the next ones are served."""
    whole, calls = getattr(owner, name), itertools.count()

    def starved(*args):
        if next(calls) == 4:
            raise MemoryError
        return whole(*args)

    monkeypatch.setattr(owner, name, starved)
    oracle = RecordingOracle(rows=2, wait=0.001)
    running = [engine.start(query_plan(5), oracle) for _ in range(3)]
    ends = [one._future.exception() for one in running]
    assert any(isinstance(end, MemoryError) for end in ends)
    assert all(isinstance(end, MemoryError | None) for end in ends)
    assert engine.start(query_plan(2), oracle).result() == [1, 1]
    assert not engine.busy


@pytest.mark.timeout(20)
def test_task_completes_after_step_and_abandon_both_run_out_of_memory(engine, monkeypatch):
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
    assert engine.start(query_plan(2), RecordingOracle())._future.result(10) == [1, 1]


def test_attack_result_does_not_depend_on_the_pass_size():
    module = linear_model(classes=10)
    x = gray_images(12)
    model = touchstone.wrap(module)
    small = replace(model, oracle=replace(model.oracle, rows=5))
    seeds = list(range(12))
    one = touchstone.attack(model, x, None, "pgd", eps=0.01, seed=seeds, quantize=False)
    sliced = touchstone.attack(small, x, None, "pgd", eps=0.01, seed=seeds, quantize=False)
    assert torch.allclose(one.images, sliced.images, atol=1e-6)
    assert one.queries == sliced.queries
