"""The engine in one process: jobs whose rows are fused, the same side by side, one batch, and one job of many
image files; small jobs beside large ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import touchstone
from benchmarks.networks import CNN, LITE0, clothes, photos
from benchmarks.record import save
from touchstone.engine import Batcher, Engine, Goal, Logits, PlanOf, Task, TorchOracle
from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.plans import expand_loops
from touchstone.evaluation.attempts import AttackResult, attack_rows
from touchstone.evaluation.row_verdicts import attack_files
from touchstone.evaluation.verdict import build_case, row_as_image
from touchstone.methods import Attack, find
from touchstone.models.zoo import find_manifest

JOBS, ROUNDS = 64, 5
PGD = {"eps": 0.03, "steps": 40, "early_stop": False}
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": PGD,
    "apgd": PGD,
    "square": {"eps": 0.03, "queries": 200, "early_stop": False},
    "simba": {"queries": 200},
    "fmn": {"steps": 40},
    "ddn": {"steps": 40},
}


class FreeNetwork(nn.Module):
    """A network that costs next to nothing: what is left is the engine's own time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def attack_plan(attack: Attack, x: Tensor, first: int) -> PlanOf[AttackResult]:
    """An attack on images (B, C, H, W) whose noise has the numbers from `first` on."""
    clean = (yield Logits(x)).logits
    goal = Goal.of(clean.argmax(1), targeted=False)
    case = build_case(attack, x, goal, [(0, first + row) for row in range(len(x))])
    return (yield from attack_rows(attack, case, clean, Diagnosis()))


def time_plans(plans: Sequence[PlanOf[Any]], oracle: TorchOracle) -> float:
    """CPU seconds until all plans have ended."""
    batcher, began = Batcher(), time.process_time()
    for plan in plans:
        batcher.add(Task(plan, oracle))
    while len(batcher):
        batcher.step()
    return time.process_time() - began


def measure_fusion(name: str, oracle: TorchOracle, x: Tensor) -> dict[str, Any]:
    """64 jobs of one image: fused, side by side, and as one batch; one job of 64 image files, which also
    rounds and judges what it finds. CPU seconds, the runs taking turns.
    """
    attack = find(name, "attack").parse(ATTACKS[name])
    if not isinstance(attack, Attack):
        raise TypeError(name)
    files, seeds = (
        [row_as_image(x[row : row + 1]) for row in range(len(x))],
        [(0, row) for row in range(len(x))],
    )
    ways: dict[str, Callable[[], list[PlanOf[Any]]]] = {
        "batch": lambda: [attack_plan(attack, x, 0)],
        "fused": lambda: [attack_plan(attack, x[row : row + 1], row) for row in range(len(x))],
        "side_by_side": lambda: [
            expand_loops(attack_plan(attack, x[row : row + 1], row)) for row in range(len(x))
        ],
        "one_job": lambda: [attack_files(attack, files, oracle, seeds=seeds, labels=[None] * len(x))],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, plans in ways.items():
            seconds[way].append(time_plans(plans(), oracle))
    median = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "cpu_ms_a_job": {way: round(1000 * value / len(x), 2) for way, value in median.items()},
        "fused_to_batch": round(median["fused"] / median["batch"], 2),
        "side_by_side_to_batch": round(median["side_by_side"] / median["batch"], 2),
        "batch_to_one_job": round(median["batch"] / median["one_job"], 2),
    }


@contextmanager
def keep_busy(start: Callable[[], Any], jobs: int) -> Iterator[None]:
    """So many jobs that never end; a moment later, when they are at work."""
    handles = [start() for _ in range(jobs)]
    time.sleep(1.0)
    yield
    for handle in handles:
        handle.cancel()


def measure_neighbors() -> dict[str, Any]:
    """Seconds of one job of 40 steps beside others that never end, and how many times as long as alone."""
    engine = Engine(device="cpu")
    cnn, lite0 = (engine.models.acquire(find_manifest(name)).__enter__() for name in (CNN, LITE0))
    endless = {"eps": 0.03, "steps": 10_000, "early_stop": False}
    long, pgd = find("pgd", "attack").parse(endless), find("pgd", "attack").parse(PGD)
    short = find("pgd", "attack").parse({**PGD, "steps": 5})
    cloth, photo = clothes(1), photos(1)

    def start(attack: Any, x: Tensor, oracle: Any, owner: str) -> Any:
        return engine.start(attack_plan(attack, x, 0), oracle, owner=owner)

    def time_job(*job: Any) -> float:
        began = time.perf_counter()
        start(*job, "visitor").result()
        return time.perf_counter() - began

    def compare(job: tuple[Any, ...], others: tuple[Any, ...], count: int) -> dict[str, float]:
        alone = statistics.median(time_job(*job) for _ in range(3))
        with keep_busy(lambda: start(*others), count):
            beside = statistics.median(time_job(*job) for _ in range(3))
        return {"alone": round(alone, 2), "beside": round(beside, 2), "ratio": round(beside / alone, 2)}

    small, large = (pgd, cloth, cnn), (short, photo, lite0)
    figures = {
        "small_beside_twelve_large": compare(small, (long, photo, lite0, "visitor"), 12),
        "large_beside_64_small": compare(large, (long, cloth, cnn, "visitor"), 64),
        "one_beside_a_thousand_of_another_owner": compare(small, (long, cloth, cnn, "flood"), 1000),
    }
    engine.stop()
    return figures


def main() -> None:
    torch.set_num_threads(1)  # CPU seconds of one thread compare, those of several depend on the machine
    free, cnn = touchstone.wrap(FreeNetwork()).oracle, touchstone.load(CNN).oracle
    x = clothes(JOBS)
    fusion = {
        "a network that costs nothing": {name: measure_fusion(name, free, x) for name in ATTACKS},
        CNN: {"pgd": measure_fusion("pgd", cnn, x)},
    }
    save("engine", {"jobs": JOBS, "fusion": fusion, "neighbors": measure_neighbors()})


if __name__ == "__main__":
    main()
