"""What loading a model shows of it, and how the ledger hears of that."""

from __future__ import annotations

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
from touchstone.engine.oracles.probe import LEAST_ROWS, load_oracle, probed
from touchstone.ledger.ledger import Ledger
from touchstone.models.measurements import Probe
from touchstone.models.zoo import manifest
from touchstone.settings import Settings
from workers.lease_keeper import Keeper

MODEL = "fashion-mnist-cnn"
SHAPE = (3, 8, 8)


class Function(nn.Module):
    """A linear model with something after it."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.linear = linear_model(classes=4)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.after(self.linear(x))
        return logits


def probe_of(after: Any) -> tuple[Any, Probe]:
    return probed(touchstone.wrap(Function(after)).oracle, SHAPE)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


def test_a_load_is_measured(engine: Engine) -> None:
    before = datetime.now(UTC)
    with engine.models.hold(manifest(MODEL)) as oracle:
        probe = engine.probes()[manifest(MODEL).digest]
    assert before < probe.measured_at < datetime.now(UTC)
    assert (probe.device, probe.torch) == ("cpu", torch.__version__)
    assert probe.rows == oracle.rows >= LEAST_ROWS
    assert probe.bytes == engine.figures()["resident_models"][0]["bytes"] > 100_000
    assert probe.bytes >= 4 * manifest(MODEL).parameters
    assert 0 < probe.single_rate < probe.forward_rate
    assert probe.gradient_rate >= probe.single_rate
    assert 0 < probe.load_seconds < 60
    assert (probe.frozen, probe.batch_invariant, probe.softmax) == (True, True, False)
    assert probe.logits_difference is not None
    assert probe.logits_difference < 1e-4
    assert oracle.shared


def test_every_model_of_the_zoo_is_fit_to_share_passes() -> None:
    _, probe = load_oracle(manifest("imagenet-efficientnet-lite0"), torch.device("cpu"))
    assert (probe.frozen, probe.batch_invariant, probe.softmax) == (True, True, False)


def _memory_for_sixteen(z: Tensor) -> Tensor:
    if len(z) > 16:
        raise torch.OutOfMemoryError("no room")
    return z


def test_no_larger_batch_is_tried_than_memory_holds() -> None:
    oracle, probe = probe_of(_memory_for_sixteen)
    assert oracle.rows == probe.rows <= 16


def test_a_model_that_depends_on_the_batch_shares_no_pass() -> None:
    oracle, probe = probe_of(lambda z: z - z.mean(0))
    assert not probe.batch_invariant
    assert not oracle.shared
    assert probe.logits_difference is not None
    assert probe.logits_difference > 0.1


def test_a_gradient_alone_may_give_the_dependence_away() -> None:
    def sly(z: Tensor) -> Tensor:
        return z + (z.sum() - z.sum().detach()) * z.detach().sign()

    oracle, probe = probe_of(sly)
    assert probe.logits_difference is not None
    assert probe.logits_difference < 1e-4
    assert (probe.batch_invariant, oracle.shared) == (False, False)


def test_a_softmax_at_the_end_is_found() -> None:
    assert probe_of(lambda z: z.softmax(1))[1].softmax
    assert not probe_of(lambda z: z.softmax(1) * 2)[1].softmax


def test_answers_that_are_no_numbers_are_survived() -> None:
    oracle, probe = probe_of(lambda z: z * torch.nan)
    assert (probe.logits_difference, probe.batch_invariant, oracle.shared) == (None, False, False)
    assert Probe.model_validate_json(probe.model_dump_json()) == probe


def test_a_model_that_still_learns_is_told_from_a_frozen_one() -> None:
    oracle = touchstone.wrap(linear_model()).oracle
    assert probed(oracle, SHAPE)[1].frozen
    oracle.module.train()
    assert not probed(oracle, SHAPE)[1].frozen


def test_the_keeper_notes_what_was_measured_and_the_figures(
    engine: Engine, settings: Settings, ledger: Ledger
) -> None:
    digest = manifest(MODEL).digest
    assert ledger.probes([digest, "sha256:0"]) == {}
    keeper = Keeper("w1", ledger, engine, settings, give_up=lambda _: None)
    keeper.start()
    try:
        with engine.models.hold(manifest(MODEL)) as oracle:
            engine.start(touchstone.evaluation.look_at(pixels(), oracle), oracle).result()
        found = wait_until(lambda: ledger.probes([digest, "sha256:0"]))
        info = wait_until(
            lambda: next((one.info for one in ledger.workers() if has_answered(one.info)), None)
        )
    finally:
        keeper.close()
    assert found == {digest: engine.probes()[digest]}
    assert info["device"] == "cpu"
    assert info["resident_models"] == [{"id": MODEL, "digest": digest, "bytes": found[digest].bytes}]
    assert (info["queries"]["forward"], info["queries"]["backward"]) == (1, 0)


def pixels() -> Any:
    return (touchstone.samples()[0] * 255).round().byte().permute(1, 2, 0).numpy()


def has_answered(info: Any) -> bool:
    return bool(info["queries"]["forward"])


def test_a_probe_that_another_version_wrote_is_as_good_as_none(ledger: Ledger, valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        client.set("ts:probe:sha256:0", '{"rows": 64}')
    assert ledger.probes(["sha256:0"]) == {}
    assert ledger.probes([]) == {}
