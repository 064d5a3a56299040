"""A step of a loop waits for its device once, whatever the number of jobs: counted on a CPU as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import touchstone
from api_tests.support.attack_tasks import RowByRow, attack_plan, one_by_one, parse, run
from api_tests.support.linear_models import gray_images
from touchstone.engine import Batcher, Task, TorchOracle


@pytest.fixture(scope="module")
def oracle() -> TorchOracle:
    return touchstone.wrap(RowByRow()).oracle


WAITS = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero"}


class WaitCounter(TorchDispatchMode):
    """Counts what would wait for a GPU: values that the host reads, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        masked = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        self.waits += name in WAITS or masked
        return func(*args, **(kwargs or {}))


@contextmanager
def count_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitCounter]:
    """As on a GPU: nothing may be read at once, and each transfer to the host counts."""
    counter, to_list = WaitCounter(), Tensor.tolist

    def counted_list(values: Tensor) -> Any:
        counter.waits += 1
        return to_list(values)

    for module in ("rows", "diagnosis", "quantization", "search.random_search"):
        monkeypatch.setattr(f"touchstone.engine.{module}.reads_at_once", lambda _: False, raising=False)
    monkeypatch.setattr(Tensor, "tolist", counted_list)
    with counter:
        yield counter


@pytest.mark.parametrize("jobs", [1, 64])
@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("name", ["pgd", "mifgsm", "apgd"])
def test_step_waits_for_the_device_once_whatever_the_number_of_jobs(
    monkeypatch: pytest.MonkeyPatch, jobs: int, early_stop: bool, name: str
) -> None:
    """64 rows: of a model that resists or, without early stopping, of one that does not."""
    module = RowByRow()
    module.layer.bias.data[0] += 100 * early_stop
    oracle = touchstone.wrap(module).oracle
    attack, x = parse(name, {"eps": 0.05, "steps": 12, "early_stop": early_stop}), gray_images(64)
    rows = 64 // jobs
    batcher = Batcher()
    for first in range(0, 64, rows):
        batcher.add(Task(attack_plan(attack, x[first : first + rows], first), oracle))
    while not any(getattr(task.query, "open_rows", 0) for task in batcher.tasks()):
        batcher.step()
    batcher.step()
    batcher.step()
    with count_waits(monkeypatch) as counter:
        for _ in range(6):
            batcher.step()
    assert len(batcher) == jobs, "still at it"
    assert counter.waits <= 6


def test_rows_of_a_loop_are_judged_alike_where_nothing_may_be_read_at_once(
    oracle: TorchOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branches for a GPU give what those for a CPU give."""
    attacks = [
        parse("pgd", {"eps": 0.02, "steps": 9, "early_stop": False}),
        parse("square", {"eps": 0.02, "queries": 40}),
    ]
    expected = [run(one_by_one(attack, gray_images(4), oracle)) for attack in attacks]
    with count_waits(monkeypatch):
        found = [run(one_by_one(attack, gray_images(4), oracle)) for attack in attacks]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one.x, other.x) for one, other in zip(ours, theirs, strict=True))
