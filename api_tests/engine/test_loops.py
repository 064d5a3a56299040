"""Loops of many jobs run as one record of rows, and each row comes to what it would have come to alone."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

import touchstone
from api_tests.support.attack_tasks import CountedOracle, RowByRow, attack_plan, one_by_one, parse, run
from api_tests.support.linear_models import gray_images
from touchstone.engine import Batcher, Goal, QueryCount, Task, TorchOracle
from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.plans import expand_loops
from touchstone.errors import DeadlineExceeded, JobCanceled
from touchstone.evaluation.attempts import attack_rows
from touchstone.evaluation.row_verdicts import attack_files
from touchstone.evaluation.success_record import SuccessRecord, record_successes
from touchstone.evaluation.verdict import attack_image, build_case, judge_image, round_image, row_as_image
from touchstone.models.manifest import Manifest
from touchstone.models.zoo import find_manifest

ROWS = 5
LOOPS: list[tuple[str, dict[str, Any]]] = [
    ("fgsm", {"eps": 0.02}),
    ("bim", {"eps": 0.02, "norm": "l2"}),
    ("mifgsm", {"eps": 0.01}),
    ("nifgsm", {"eps": 0.01, "early_stop": False}),
    ("pgd", {"eps": 0.01, "steps": 9}),
    ("pgd", {"eps": 0.02, "steps": 9, "early_stop": False}),
    ("pgd", {"eps": 2.0, "steps": 9, "norm": "l1"}),
    ("pgd", {"eps": 0.05, "steps": 9, "min_confidence": 0.6}),
    ("apgd", {"eps": 0.01, "steps": 12, "early_stop": False}),
    ("apgd", {"eps": 0.1, "steps": 30, "early_stop": False}),
    ("apgd", {"eps": 4.0, "steps": 75, "norm": "l1", "early_stop": False}),
    ("apgd", {"eps": 0.01, "steps": 12, "loss": "dlr"}),
    ("square", {"eps": 0.02, "queries": 40}),
    ("square", {"eps": 0.5, "queries": 40, "norm": "l2", "early_stop": False}),
    ("simba", {"queries": 40}),
    ("fmn", {"steps": 12}),
    ("ddn", {"steps": 12}),
]
IDS = [f"{name}-{'-'.join(map(str, fields.values()))}" for name, fields in LOOPS]


@pytest.fixture(scope="module")
def oracle() -> TorchOracle:
    return touchstone.wrap(RowByRow()).oracle


@pytest.mark.parametrize(("name", "fields"), LOOPS, ids=IDS)
@pytest.mark.parametrize("steps_between", [0, 1])
@pytest.mark.parametrize("waves", [False, True])
def test_rows_that_join_at_any_step_end_as_if_alone(
    name: str, fields: dict[str, Any], steps_between: int, waves: bool
) -> None:
    attack, x = parse(name, fields), gray_images(ROWS)
    oracle = touchstone.wrap(RowByRow(waves=waves)).oracle
    together = one_by_one(attack, x, oracle)
    found = run(together, steps_between=steps_between)
    alone = one_by_one(attack, x, oracle)
    for task in alone:
        task.plan = expand_loops(task.plan)
    expected = [run([task])[0] for task in alone]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.met, theirs.met)
    assert [task.queries for task in together] == [task.queries for task in alone]


@pytest.mark.parametrize("rows", [1, 5])
def test_jobs_with_steps_and_radii_of_their_own_share_passes(oracle: TorchOracle, rows: int) -> None:
    x = gray_images(6 * rows)
    parts = [x[start : start + rows] for start in range(0, len(x), rows)]
    attacks = [parse("pgd", {"eps": 0.004 * n, "steps": 4 + n, "early_stop": False}) for n in range(1, 7)]
    counted = CountedOracle(oracle)
    tasks = [Task(attack_plan(a, part, 0), counted) for a, part in zip(attacks, parts, strict=True)]
    found = run(tasks)
    assert counted.gradient_passes == 10, "as many as the longest has steps"
    for attack, part, ours in zip(attacks, parts, found, strict=True):
        [alone] = run([Task(attack_plan(attack, part, 0), oracle)])
        assert torch.equal(ours.x, alone.x)


def test_record_larger_than_a_pass_gives_each_owner_its_share(oracle: TorchOracle) -> None:
    counted = CountedOracle(oracle, rows=8)
    attack, x = parse("pgd", {"eps": 0.02, "steps": 10, "early_stop": False}), gray_images(24)
    tasks, ended = one_by_one(attack, x, counted), dict[Task, Any]()
    batcher = Batcher()
    for row, task in enumerate(tasks):
        task.owner = "few" if row == 23 else "many"
        task.on_done = lambda result, error, task=task: ended.setdefault(task, error or result)
        batcher.add(task)
    while len(batcher):
        batcher.step()
    assert next(iter(ended)) is tasks[23], "its one row is in every pass"
    assert max(counted.passes) == 8
    for task, alone in zip(tasks, run(one_by_one(attack, x, oracle)), strict=True):
        assert torch.equal(ended[task].x, alone.x)


def test_rows_of_a_job_larger_than_a_pass_advance_together(oracle: TorchOracle) -> None:
    counted, seen = CountedOracle(oracle, rows=8), list[int]()
    attack, x = parse("fmn", {"steps": 6}), gray_images(20)
    task, batcher, ended = Task(attack_plan(attack, x, 0), counted), Batcher(), list[Any]()
    task.on_done = lambda result, error: ended.append(error or result)
    batcher.add(task)
    while len(batcher):
        seen.append(getattr(task.query, "open_rows", 0))
        batcher.step()
    whole = [rows for rows in seen if rows]
    assert whole.count(20) >= 13, "15 passes make 6 steps of 20 rows, and no row ends before the last three"
    [alone] = run([Task(attack_plan(attack, x, 0), oracle)])
    assert counted.gradient_passes == 15
    assert torch.equal(ended[0].x, alone.x)


def test_image_that_breaks_the_model_ends_its_own_job_alone(oracle: TorchOracle) -> None:
    x = gray_images(4)
    counted = CountedOracle(oracle)
    counted.poison = float(x[2, 0, 0, 0])
    found = run(one_by_one(parse("fmn", {"steps": 5}), x, counted))  # its first query is of the image itself
    assert [isinstance(one, RuntimeError) for one in found] == [
        bool((one[:, 0, 0] == counted.poison).any()) for one in x
    ]


def test_out_of_memory_makes_passes_smaller_and_ends_no_job(oracle: TorchOracle) -> None:
    attack, x = parse("pgd", {"eps": 0.01, "steps": 5, "early_stop": False}), gray_images(ROWS)
    counted = CountedOracle(oracle, capacity=5)
    found = run(one_by_one(attack, x, counted))
    expected = run(one_by_one(attack, x, oracle))
    assert max(counted.passes) <= 5
    assert all(torch.equal(ours.x, theirs.x) for ours, theirs in zip(found, expected, strict=True))


def test_canceled_rows_leave_between_two_steps_and_others_go_on(oracle: TorchOracle) -> None:
    attack, x = parse("pgd", {"eps": 0.01, "steps": 8, "early_stop": False}), gray_images(6)
    counted = CountedOracle(oracle)
    tasks = one_by_one(attack, x, counted)

    def cancel_third() -> None:
        tasks[2].canceled = counted.gradient_passes == 4 or tasks[2].canceled

    counted.before = cancel_third
    found = run(tasks)
    expected = run(one_by_one(attack, x, oracle))
    assert isinstance(found[2], JobCanceled)
    assert tasks[2].queries.backward == 4, "what it asked until then is counted"
    for row in (0, 1, 3, 4, 5):
        assert torch.equal(found[row].x, expected[row].x)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("pgd", {"eps": 0.1, "steps": 50, "early_stop": False}),
        ("square", {"eps": 0.3, "queries": 200, "early_stop": False}),
        ("fmn", {"steps": 50}),
        ("ddn", {"steps": 50}),
    ],
)
def test_deadline_within_a_loop_returns_its_best_success(
    oracle: TorchOracle, name: str, fields: dict[str, Any]
) -> None:
    attack, x = parse(name, fields), gray_images(1)
    clean = oracle.module(oracle.preprocessing.apply(x))
    case = build_case(attack, x, Goal.of(clean.argmax(1), targeted=False), [(0, 0)])
    record = SuccessRecord(case, by_distance=attack.info.budget == "minimal")
    counted = CountedOracle(oracle)
    plan = record_successes(attack_rows(attack, case, clean, Diagnosis()), record)
    task = Task(plan, counted)

    def pass_deadline() -> None:
        if len(counted.passes) == 40:
            task.deadline = time.monotonic() - 1

    counted.before = pass_deadline
    [error] = run([task])
    assert isinstance(error, DeadlineExceeded)
    assert record.best is not None
    best = record.best if record.by_distance else case.as_file(record.best)
    logits = oracle.module(oracle.preprocessing.apply(best))
    assert bool(case.goal.is_met(logits))


def test_progress_is_told_with_the_queries_so_far(
    oracle: TorchOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("touchstone.engine.scheduler.loop_rows.REPORT_SECONDS", 0.0)
    attack, x = parse("pgd", {"eps": 0.01, "steps": 6, "early_stop": False}), gray_images(3)
    tasks, told = one_by_one(attack, x, oracle), []
    tasks[1].on_answer = lambda _query, answer, queries: told.append((len(answer.logits), queries.backward))
    run(tasks)
    assert [backward for _, backward in told][1:7] == [1, 2, 3, 4, 5, 6]
    assert {rows for rows, _ in told} == {1}
    assert tasks[1].queries == QueryCount(*(tasks[1].queries.forward, 6, 0))


def test_owner_that_cannot_hear_of_progress_ends_alone(oracle: TorchOracle) -> None:
    tasks = one_by_one(parse("pgd", {"eps": 0.01, "steps": 6}), gray_images(3), oracle)

    def fail(*_: object) -> None:
        raise MemoryError

    tasks[1].on_answer = fail
    found = run(tasks)
    assert [isinstance(one, MemoryError) for one in found] == [False, True, False]


def test_model_of_the_same_weights_elsewhere_shares_no_step(oracle: TorchOracle) -> None:
    one, other = CountedOracle(oracle), CountedOracle(replace(oracle))
    attack = parse("pgd", {"eps": 0.01, "steps": 5, "early_stop": False})
    run([Task(attack_plan(attack, gray_images(1), 0), each) for each in (one, other)])
    assert one.gradient_passes == other.gradient_passes == 5


def test_jobs_of_the_service_on_one_model_are_of_one_kind(oracle: TorchOracle) -> None:
    """Each job makes its own case, and reads the manifest anew."""
    manifest_json = find_manifest("fashion-mnist-cnn").model_dump_json()
    for fields in ({"eps": 0.01}, {"eps": 0.01, "min_confidence": 0.9}):
        counted = CountedOracle(oracle)
        attack, pixels = parse("pgd", {**fields, "early_stop": False, "steps": 5}), gray_images(4)
        tasks = [
            Task(
                attack_image(
                    attack,
                    row_as_image(pixels[row : row + 1]),
                    counted,
                    label=None,
                    target=None,
                    seed=row,
                    manifest=Manifest.model_validate_json(manifest_json),
                ),
                counted,
            )
            for row in range(4)
        ]
        run(tasks)
        assert counted.gradient_passes == 5, fields


def test_many_images_in_one_job_get_what_each_would_alone(oracle: TorchOracle) -> None:
    attack, x = parse("pgd", {"eps": 0.01, "steps": 6}), gray_images(7)
    files = [row_as_image(x[row : row + 1]) for row in range(7)]
    seeds = [(row, 0) for row in range(7)]
    together = Task(attack_files(attack, files, oracle, seeds=seeds, labels=[None] * 7), oracle)
    beside = [
        Task(attack_image(attack, one, oracle, label=None, target=None, seed=row), oracle)
        for row, one in enumerate(files)
    ]
    found, *alone = run([together, *beside])
    for row, one in enumerate(alone):
        [judged] = run([Task(judge_image(one, *run([Task(round_image(one), oracle)])), oracle)])
        assert torch.equal(found.judged.images[row], judged.images[0])
        assert bool(found.judged.success[row]) == bool(judged.success)


def test_labels_and_targets_of_many_images_are_their_own(oracle: TorchOracle) -> None:
    attack, x = parse("pgd", {"eps": 0.1, "steps": 20}), gray_images(4)
    files = [row_as_image(x[row : row + 1]) for row in range(4)]
    seeds = [(0, row) for row in range(4)]
    predicted = oracle.module(oracle.preprocessing.apply(x)).argmax(1).tolist()
    labels = [predicted[0], (predicted[1] + 1) % 10, None, None]
    [found] = run([Task(attack_files(attack, files, oracle, seeds=seeds, labels=labels), oracle)])
    assert found.already_met.tolist() == [False, True, False, False]
    targets = [(one + 3) % 10 for one in predicted]
    plan = attack_files(attack, files, oracle, seeds=seeds, labels=[None] * 4, targets=targets)
    [reached] = run([Task(plan, oracle)])
    assert reached.judged.logits.argmax(1).tolist() == targets
