"""The price of every method of the catalogue holds: memory below what it declares, no step over its time.

By default each method runs on small images, and some at 1024x1024; TOUCHSTONE_FUZZ runs the whole grid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from api_tests.methods.peak_memory import track_peak
from api_tests.support.linear_models import linear_model
from touchstone import evaluation
from touchstone.engine import Batcher, TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.scheduler.step_limit import measure_slowness
from touchstone.evaluation.library import run_plans
from touchstone.evaluation.perturbation import measure_perturbation
from touchstone.images import decode, encode
from touchstone.methods import Attack, catalogue, find
from touchstone.methods.memory_price import ImageSize, memory_of
from touchstone.models.manifest import InputSpec
from touchstone.settings import Settings

EVERYTHING = "TOUCHSTONE_FUZZ" in os.environ
INPUT, CLASSES = 28, 12
SMALL_OVERHEAD = 2**20
"""Bytes that a job takes whatever its image: its network, and Python's objects."""
STEP_SECONDS = Settings.model_fields["step_seconds"].default

SHORT: dict[str, dict[str, Any]] = {
    "boundary": {"queries": 30},
    "hopskipjump": {"queries": 90, "evaluations": 40},
    "geoda": {"queries": 80},
    "simba": {"queries": 12},
    "square": {"queries": 12},
    "nes": {"queries": 110},
    "onepixel": {"queries": 150, "population": 100},
    "zoo": {"queries": 300},
    "sparsefool": {"steps": 2, "inner_steps": 3},
    "autoattack": {"steps": 3, "queries": 10},
    "cw": {"steps": 4, "binary_search_steps": 2},
    "cw-linf": {"steps": 3, "largest_const": 1e-4, "smallest": 0.5},
    "ead": {"steps": 4, "binary_search_steps": 2},
}
"""Few steps and queries: what is held at once does not grow with them."""

EXTREME: dict[str, list[dict[str, Any]]] = {
    "nes": [{"queries": 1201, "samples": 1200}, {"norm": "l2"}],
    "onepixel": [
        {"population": 10_000, "pixels": 100, "queries": 200},
        {"crossover": 0.5, "strategy": "rand1bin"},
    ],
    "zoo": [{"batch": 10_000, "queries": 1000}],
    "apgdt": [{"rivals": 1000, "steps": 2}, {"norm": "l1", "steps": 2}, {"norm": "l2", "steps": 2}],
    "fab": [
        {"rivals": 9, "steps": 2, "norm": "l1"},
        {"rivals": 1000, "steps": 2},
        {"rivals": 0, "steps": 2, "norm": "l1"},
        {"norm": "l2", "steps": 2, "restarts": 2},
    ],
    "deepfool": [{"candidates": 1000, "steps": 2}, {"norm": "linf", "steps": 2}],
    "jsma": [{"gamma": 1.0, "steps": 3, "theta": -1}],
    "hopskipjump": [{"evaluations": 100_000, "queries": 90}, {"norm": "linf"}],
    "geoda": [{"norm": "linf", "low": 1}],
    "pgd": [{"eot": 200, "steps": 1}, {"norm": "l1", "steps": 2}, {"norm": "l2", "steps": 2, "restarts": 3}],
    "apgd": [{"norm": "l1", "steps": 5}, {"norm": "l2", "steps": 4, "loss": "dlr"}],
    "square": [{"norm": "l1"}, {"norm": "l2"}, {"p_init": 1.0}],
    "simba": [{"basis": "dct"}],
    "fmn": [{"norm": "l0", "steps": 3}, {"norm": "l1", "steps": 3}, {"norm": "linf", "steps": 3}],
    "transfer": [{"blur": 10, "norm": "l2", "steps": 2}],
    "fgsm": [{"norm": "l1"}, {"norm": "l2"}, {"min_confidence": 0.99, "early_stop": False}],
    "mifgsm": [{"norm": "l2", "steps": 2}],
    "bim": [{"min_confidence": 0.999, "early_stop": False, "steps": 3}],
}

DEFENCES = ("jpeg-100", "bits-1", "median-3", "median-5", "median-7")


def settings_of(name: str) -> list[dict[str, Any]]:
    """The defaults, shortened, and the extremes."""
    short = dict(SHORT.get(name, {}))
    if not short and "steps" in find(name).model_fields:
        short = {"steps": 3}
    return [short, *({**short, **extreme} for extreme in EXTREME.get(name, []))]


GRID = [
    (name, asked if defence == "none" else {**asked, "defence": defence}, side)
    for side in ((28, 224, 1024) if EVERYTHING else (72,))
    for defence in (("none", *DEFENCES) if EVERYTHING else ("none",))
    for name in catalogue("attack")
    for asked in settings_of(name)
]


def make_oracle(classes: int = CLASSES) -> TorchOracle:
    """A network that costs nothing, at a small size."""
    spec = InputSpec(channels=3, height=INPUT, width=INPUT, interpolation="bilinear")
    module = linear_model(classes=classes, shape=(3, INPUT, INPUT)).eval().requires_grad_(requires_grad=False)
    return TorchOracle(module, Preprocessing(spec, None, None), torch.device("cpu"))


def make_image(side: int) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(0).integers(40, 216, (14, 14, 3)).astype(np.uint8)
    enlarged: NDArray[np.uint8] = np.kron(blocks, np.ones((-(-side // 14), -(-side // 14), 1), np.uint8))
    return np.ascontiguousarray(enlarged[:side, :side])


@contextmanager
def longest_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The processor seconds of each step of the plans in the block."""
    seconds, advance = list[float](), Batcher._advance

    def timed(self: Batcher, *asked: Any) -> None:
        began = time.thread_time()
        advance(self, *asked)
        seconds.append(time.thread_time() - began)

    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "_advance", timed)
        yield seconds


def run_attack(attack: Attack, side: int) -> None:
    """What a worker does for one image, from its pixels to the numbers of the result."""
    oracle, pixels = make_oracle(), make_image(side)
    surrogates = (make_oracle(), make_oracle()) if attack.info.access == "transfer" else ()
    plan = evaluation.attack_image(
        attack, pixels, oracle, label=None, target=None, seed=0, surrogates=surrogates
    )
    [sought], _ = run_plans([plan], oracle)
    [rounded], _ = run_plans([evaluation.round_image(sought)], oracle)
    [judged], _ = run_plans([evaluation.judge_image(sought, decode(encode(rounded)).pixels)], oracle)
    measure_perturbation(pixels, evaluation.row_as_image(judged.images))


def check_price(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], price: int) -> None:
    with longest_step(monkeypatch) as seconds, track_peak() as peak:
        run()
    assert peak.bytes <= price + SMALL_OVERHEAD, f"{peak} exceeds {price / 2**20:.1f} MiB"
    assert max(seconds) <= STEP_SECONDS * measure_slowness()


def check_attack(monkeypatch: pytest.MonkeyPatch, name: str, side: int, asked: dict[str, Any]) -> None:
    attack = find(name, "attack").parse(asked)
    assert isinstance(attack, Attack)
    price = memory_of(attack, ImageSize(side, side, 3, 3 * INPUT**2, CLASSES))
    check_price(monkeypatch, lambda: run_attack(attack, side), price)


@pytest.mark.parametrize(("name", "asked", "side"), GRID)
def test_attack_stays_below_its_price(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: dict[str, Any], side: int
) -> None:
    check_attack(monkeypatch, name, side, asked)


@pytest.mark.parametrize("name", ["pgd", "nes", "onepixel", "jsma"])
def test_attack_on_a_large_image_stays_below_its_price(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    few = {"nes": {"queries": 13, "samples": 12}, "onepixel": {"queries": 8, "population": 8}}
    check_attack(monkeypatch, name, 1024, few.get(name, {"steps": 1}))


@pytest.mark.parametrize("defence", DEFENCES)
def test_defence_stays_below_the_price_of_the_attack(monkeypatch: pytest.MonkeyPatch, defence: str) -> None:
    check_attack(monkeypatch, "nes", 224, {"queries": 13, "samples": 12, "defence": defence})


@pytest.mark.parametrize("name", catalogue("certificate"))
def test_certificate_stays_below_its_price(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method = find(name, "certificate").parse({"n": 300, "n0": 64})
    price = memory_of(method, ImageSize(224, 224, 3, 3 * INPUT**2, CLASSES))
    oracle, pixels = make_oracle(), make_image(224)

    def certify() -> None:
        run_plans([evaluation.certify_image(method, pixels, oracle, seed=0)], oracle)  # type: ignore[arg-type]

    check_price(monkeypatch, certify, price)
