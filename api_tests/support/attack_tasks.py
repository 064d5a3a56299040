"""Attacks as tasks of a batcher, on a model whose answers to a row are the same in every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from api_tests.support.linear_models import linear_model
from touchstone.engine import Batcher, Goal, Logits, PlanOf, Task, TorchOracle
from touchstone.engine.diagnosis import Diagnosis
from touchstone.evaluation.attempts import AttackResult, attack_rows
from touchstone.evaluation.verdict import build_case
from touchstone.methods import Attack, find


class RowByRow(nn.Module):
    """A model whose answer to a row is the same to the bit in every batch: linear or, with `waves`, of a
    triangle wave of each value, so that losses rise and fall.
    """

    def __init__(self, *, waves: bool = False) -> None:
        super().__init__()
        self.layer = linear_model(classes=10)[1]
        self._waves = waves

    def forward(self, x: Tensor) -> Tensor:
        x = (17 * x % 1 - 0.5).abs() if self._waves else x
        return (x.flatten(1)[:, None] * self.layer.weight).sum(2) + self.layer.bias


class CountedOracle:
    """An oracle that counts its passes, fails where an image is `poison`, and can hold so many rows."""

    def __init__(self, oracle: TorchOracle, *, rows: int = 64, capacity: int = 10**6) -> None:
        self._oracle, self.rows, self._capacity = oracle, rows, capacity
        self.poison: float | None = None
        self.gradient_passes = 0
        self.passes: list[int] = []
        self.before: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._oracle, name)

    def answer(self, queries: Sequence[Any]) -> Any:
        self.before()
        rows = sum(map(len, queries))
        if rows > self._capacity:
            raise torch.OutOfMemoryError("out of memory")
        if any(bool((query.x[..., 0, 0] == self.poison).any()) for query in queries if self.poison):
            raise RuntimeError("this image breaks the model")
        self.gradient_passes += bool(queries[0].backward_passes)
        self.passes.append(rows)
        return self._oracle.answer(queries)


def parse(name: str, fields: dict[str, Any]) -> Attack:
    method = find(name, "attack").parse(fields)
    assert isinstance(method, Attack)
    return method


def attack_plan(attack: Attack, x: Tensor, first: int) -> PlanOf[AttackResult]:
    """An attack on images whose noise has the numbers from `first` on."""
    clean = (yield Logits(x)).logits
    goal = Goal.of(clean.argmax(1), targeted=False)
    case = build_case(attack, x, goal, [(0, first + row) for row in range(len(x))])
    return (yield from attack_rows(attack, case, clean, Diagnosis()))


def run(tasks: Sequence[Task], *, steps_between: int = 0) -> list[Any]:
    """What each task returned, or what ended it; each is added so many steps after the one before."""
    batcher, ended = Batcher(), {}
    waiting = list(tasks)
    for task in tasks:
        task.on_done = lambda result, error, task=task: ended.setdefault(
            task, result if error is None else error
        )
    while waiting or len(batcher):
        if waiting:
            batcher.add(waiting.pop(0))
        for _ in range(steps_between if waiting else 1):
            batcher.step()
    return [ended[task] for task in tasks]


def one_by_one(attack: Attack, x: Tensor, oracle: TorchOracle) -> list[Task]:
    """A task for each image."""
    return [Task(attack_plan(attack, x[row : row + 1], row), oracle) for row in range(len(x))]
