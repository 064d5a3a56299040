"""What loading a model measures, and how the ledger records it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
import torch
from torch import Tensor, nn

import touchstone
from api_tests.support.linear_models import linear_model
from api_tests.support.wait import wait_until
from touchstone.engine import Engine
from touchstone.engine.oracles import probe as probe_module
from touchstone.engine.oracles.probe import MIN_ROWS, choose_rows, load_oracle, probe_oracle
from touchstone.ledger.ledger import Ledger
from touchstone.models.measurements import Probe
from touchstone.models.zoo import find_manifest
from touchstone.settings import Settings
from workers.lease_keeper import LeaseKeeper

MODEL = "fashion-mnist-cnn"
SHAPE = (3, 8, 8)


class LinearWithTransform(nn.Module):
    """A linear model with something after it."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.linear = linear_model(classes=4)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.after(self.linear(x))
        return logits


def probe_with(after: Any) -> tuple[Any, Probe]:
    return probe_oracle(touchstone.wrap(LinearWithTransform(after)).oracle, SHAPE)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


def test_loading_a_model_measures_it(engine: Engine) -> None:
    before = datetime.now(UTC)
    with engine.models.acquire(find_manifest(MODEL)) as oracle:
        probe = engine.probes()[find_manifest(MODEL).digest]
    assert before < probe.measured_at < datetime.now(UTC)
    assert (probe.device, probe.torch) == ("cpu", torch.__version__)
    assert probe.rows == oracle.rows >= MIN_ROWS
    assert probe.bytes == engine.metrics()["resident_models"][0]["bytes"] > 100_000
    assert probe.bytes >= 4 * find_manifest(MODEL).parameters
    assert 0 < probe.single_rate < probe.forward_rate
    assert probe.gradient_rate >= probe.single_rate
    assert 0 < probe.load_seconds < 60
    assert (probe.frozen, probe.batch_invariant, probe.softmax) == (True, True, False)
    assert probe.logits_difference is not None
    assert probe.logits_difference < 1e-4
    assert oracle.shared


def test_efficientnet_lite0_is_frozen_and_batch_invariant() -> None:
    _, probe = load_oracle(find_manifest("imagenet-efficientnet-lite0"), torch.device("cpu"))
    assert (probe.frozen, probe.batch_invariant, probe.softmax) == (True, True, False)


def _fail_above_sixteen_rows(z: Tensor) -> Tensor:
    if len(z) > 16:
        raise torch.OutOfMemoryError("out of memory")
    return z


def test_pass_size_is_limited_to_what_memory_holds() -> None:
    oracle, probe = probe_with(_fail_above_sixteen_rows)
    assert oracle.rows == probe.rows <= 16


class FakePass:
    """Seconds of passes, of which each costs `fixed` and for each row `each`, on a processor that becomes up
    to `slowest` times as slow, and fast again, every few hundredths of a second.
    """

    def __init__(self, fixed: float, each: float, *, slowest: float = 1.0, seed: int = 0) -> None:
        self.fixed, self.each, self.slowest = fixed, each, slowest
        self.asked: list[int] = []
        self._draw = random.Random(seed)
        self._left, self._slowness = 0.0, 1.0

    def __call__(self, rows: int) -> float:
        self.asked.append(rows)
        work, seconds = self.fixed + rows * self.each, 0.0
        while work > 0:
            if self._left <= 0:
                self._left = self._draw.expovariate(50)
                self._slowness = self._draw.uniform(1, self.slowest)
            spent = min(self._left, work * self._slowness)
            self._left, work, seconds = self._left - spent, work - spent / self._slowness, seconds + spent
        return seconds


MEASURED = {"fashion-mnist-cnn": (1.7e-3, 0.53e-3, 64), "imagenet-efficientnet-lite0": (5e-3, 30e-3, 8)}
"""Processor seconds of a pass and of each row, about as measured, and the rows to choose."""


@pytest.mark.parametrize("name", MEASURED)
def test_same_rows_are_chosen_whatever_disturbs_the_measurement(name: str) -> None:
    fixed, each, rows = MEASURED[name]
    assert choose_rows(FakePass(fixed, each), 64) == rows
    busy = [FakePass(fixed, each, slowest=2.5, seed=seed) for seed in range(200)]
    assert {choose_rows(one, 64) for one in busy} == {rows}


def test_pass_has_as_many_rows_as_others_can_wait_for() -> None:
    right = {0.1e-3: 64, 2e-3: 64, 5e-3: 32, 10e-3: 16, 20e-3: 8, 1.0: 8}
    assert {each: choose_rows(FakePass(0, each), 64) for each in right} == right
    assert choose_rows(FakePass(2e-3, 1e-6), 1024) == 1024, "a device to which rows cost nothing"


def test_passes_that_take_long_are_not_tried() -> None:
    slow = FakePass(0, 0.05)
    assert choose_rows(slow, 64) == MIN_ROWS
    assert set(slow.asked) == {1}


def test_choice_is_measured_by_processor_time_of_one_thread_and_rates_by_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle, clocks = touchstone.wrap(linear_model()).oracle, []

    def time_gradient(_oracle: Any, _shape: Any, rows: int, clock: Any = time.perf_counter) -> float:
        clocks.append((clock, torch.get_num_threads()))
        return rows * 1e-3

    monkeypatch.setattr(probe_module, "time_gradient", time_gradient)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rates = probe_module.measure_gradient_rates(oracle, SHAPE)
    finally:
        torch.set_num_threads(before)
    assert set(rates) == {1, 64}
    assert list(rates.values()) == [pytest.approx(1000)] * 2
    assert set(clocks) == {(time.thread_time, 1), (time.perf_counter, 2)}
    assert clocks == sorted(clocks, key=lambda one: one[0] is time.perf_counter), "first the choice"


def test_batch_dependent_model_shares_no_pass() -> None:
    oracle, probe = probe_with(lambda z: z - z.mean(0))
    assert not probe.batch_invariant
    assert not oracle.shared
    assert probe.logits_difference is not None
    assert probe.logits_difference > 0.1


def test_batch_dependence_is_found_in_the_gradient_alone() -> None:
    def sly(z: Tensor) -> Tensor:
        return z + (z.sum() - z.sum().detach()) * z.detach().sign()

    oracle, probe = probe_with(sly)
    assert probe.logits_difference is not None
    assert probe.logits_difference < 1e-4
    assert (probe.batch_invariant, oracle.shared) == (False, False)


def test_final_softmax_is_detected() -> None:
    assert probe_with(lambda z: z.softmax(1))[1].softmax
    assert not probe_with(lambda z: z.softmax(1) * 2)[1].softmax


def test_probe_of_a_model_with_nan_logits_is_not_batch_invariant() -> None:
    oracle, probe = probe_with(lambda z: z * torch.nan)
    assert (probe.logits_difference, probe.batch_invariant, oracle.shared) == (None, False, False)
    assert Probe.model_validate_json(probe.model_dump_json()) == probe


def test_probe_distinguishes_a_model_in_training_mode_from_a_frozen_one() -> None:
    oracle = touchstone.wrap(linear_model()).oracle
    assert probe_oracle(oracle, SHAPE)[1].frozen
    oracle.module.train()
    assert not probe_oracle(oracle, SHAPE)[1].frozen


def test_lease_keeper_records_model_probes_and_engine_metrics(
    engine: Engine, settings: Settings, ledger: Ledger
) -> None:
    digest = find_manifest(MODEL).digest
    assert ledger.probes.read([digest, "sha256:0"]) == {}
    keeper = LeaseKeeper("w1", ledger, engine, settings, give_up=lambda _: None)
    keeper.start()
    try:
        with engine.models.acquire(find_manifest(MODEL)) as oracle:
            engine.start(touchstone.evaluation.predict_image(pixels(), oracle), oracle).result()
        found = wait_until(lambda: ledger.probes.read([digest, "sha256:0"]))
        info = wait_until(
            lambda: next((one.info for one in ledger.workers.alive() if has_queries(one.info)), None)
        )
    finally:
        keeper.close()
    assert found == {digest: engine.probes()[digest]}
    assert info["device"] == "cpu"
    assert info["resident_models"] == [{"id": MODEL, "digest": digest, "bytes": found[digest].bytes}]
    assert (info["queries"]["forward"], info["queries"]["backward"]) == (1, 0)


def pixels() -> Any:
    return (touchstone.samples()[0] * 255).round().byte().permute(1, 2, 0).numpy()


def has_queries(info: Any) -> bool:
    return bool(info["queries"]["forward"])


def test_probe_in_an_unknown_format_is_ignored(ledger: Ledger, valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        client.set("ts:probe:sha256:0", '{"rows": 64}')
    assert ledger.probes.read(["sha256:0"]) == {}
    assert ledger.probes.read([]) == {}
