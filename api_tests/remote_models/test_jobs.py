"""Jobs on remote models, and what else runs meanwhile."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

import touchstone
from api_tests.remote_models.queries import Shelf, job
from api_tests.support import remote_models
from api_tests.support.linear_models import greyish, linear_model
from api_tests.support.remote_models import Model
from api_tests.support.wait import SECONDS, wait_until
from touchstone.engine import Batcher, Engine, RemoteOracle, Task, Ways
from touchstone.errors import (
    Canceled,
    DeadlineExceeded,
    Failure,
    GradientRefused,
    InvalidParameter,
    QueryBudgetSpent,
    RemoteAnswer,
    WorkerStopping,
)
from touchstone.ledger.ledger import Ledger
from touchstone.models.manifest import Manifest
from touchstone.registration.remote_probe import QUERIES, reached

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


def clear(model: Model) -> tuple[torch.Tensor, float]:
    """An image far from the line between two classes, made the only ones, and how far."""
    model.bias[2:] -= 1000
    images = greyish(100)
    z, (one, two) = model.logits(images.double().numpy()), model.weight[:2]
    far = np.abs(z[:, 0] - z[:, 1]) / np.linalg.norm(one - two)
    return images[int(far.argmax())], float(far.max())


def test_a_linear_model_is_certified_as_far_as_theory_says(
    engine: Engine, model: Model, ledger: Ledger
) -> None:
    card = model.card(parallel=4, batch=64)
    image, margin = clear(model)
    finished = job(engine, card, image, sigma=margin, n=2000, rule="fixed")
    result = finished.result
    assert 0.85 * margin < result["radius"] < 1.05 * margin
    assert result["predicted_class"]["label"] == int(model.logits(image[None].numpy()).argmax())
    assert result["queries"] == {"forward": model.rows, "backward": 0}
    assert ledger.spending.spent([card.digest])[card.digest] == model.rows == 2000 + 100 + 33
    assert result["eval_mode_checked"] is None
    assert result["sampling"]["batch_size"] == 64
    assert result["digests"]["model"] == card.digest


@pytest.mark.parametrize("fields", [{"method": "pixeldp", "n": 400}, {"n": 300, "rule": "e_process"}])
def test_every_certificate_runs(engine: Engine, model: Model, fields: dict[str, Any]) -> None:
    model.shape = lambda z: z.argmax(1).tolist()
    image, margin = clear(model)
    finished = job(engine, model.card(answers="labels", batch=64), image, sigma=margin / 2, **fields)
    assert finished.result["sampling"]["n_used"] == fields["n"]
    assert not finished.result["abstained"]


def test_predictions_of_files_and_of_tensors_agree(engine: Engine, model: Model) -> None:
    image = greyish(1)[0]
    tensors = job(engine, model.card(), image, kind="prediction").result
    files = job(engine, model.card(**PNG), image, kind="prediction").result
    assert tensors["original"]["label"] == files["original"]["label"]
    assert tensors["original"]["confidence"] == pytest.approx(files["original"]["confidence"], abs=1e-5)
    assert (files["queries"], model.rows) == ({"forward": 1, "backward": 0}, 2)


def test_noise_in_files_proves_nothing(engine: Engine, model: Model) -> None:
    card = model.card(**PNG)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        job(engine, card, greyish(1)[0], n=100)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        job(engine, card, greyish(1)[0], kind="prediction", defence="smoothing")
    with pytest.raises(GradientRefused, match="pgd"):
        job(engine, card, greyish(1)[0], kind="attack", method="pgd")
    assert model.rows == 0


def test_the_end_of_the_budget_leaves_what_is_proved(engine: Engine, model: Model) -> None:
    image, margin = clear(model)
    finished = job(engine, model.card(budget=900), image, sigma=margin, n=100_000, rule="e_process")
    assert finished.result["stopped_by"] == "query_budget_spent"
    assert 700 < finished.result["sampling"]["n_used"] <= 900 - 133
    assert finished.result["radius"] > 0
    assert model.rows <= 900


def test_and_fails_a_prediction(engine: Engine, model: Model) -> None:
    card = model.card(budget=1)
    job(engine, card, greyish(1)[0], kind="prediction")
    with pytest.raises(QueryBudgetSpent, match="1 were sent"):
        job(engine, card, greyish(1)[0], kind="prediction")
    assert model.rows == 1


class Started:
    """Notes a job's tasks, as the worker's keeper does."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.some = threading.Event()

    def __call__(self, task: Any) -> None:
        self.tasks.append(task)
        self.some.set()


def in_background(call: Any) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(call())
        except Failure as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ended


SOON = 20
"""Seconds, of the sixty for which a model hangs."""


def test_a_cancel_is_heard_while_the_model_hangs(engine: Engine, model: Model) -> None:
    model.act = remote_models.hang
    started = [Started(), Started(), Started()]
    threads = []
    for one in started:
        threads.append(
            in_background(
                lambda one=one: job(engine, model.card(), greyish(1)[0], kind="prediction", started=one)
            )
        )
        wait_until(lambda: model.requests >= 1)
    asked_before = model.requests
    for one, (thread, ended) in reversed(list(zip(started, threads, strict=True))):
        one.some.wait(SECONDS)
        began = time.monotonic()
        one.tasks[0].cancel()
        thread.join(SECONDS)
        assert time.monotonic() - began < SOON
        assert isinstance(ended[0], Canceled)
    assert model.requests == asked_before == 1


def test_a_cancel_is_heard_while_a_rate_is_waited_for(engine: Engine, model: Model, ledger: Ledger) -> None:
    card = model.card(rate=1, batch=4)
    started = Started()
    thread, ended = in_background(lambda: job(engine, card, greyish(1)[0], n=1000, started=started))
    wait_until(lambda: model.rows)
    time.sleep(0.1)
    began = time.monotonic()
    started.tasks[0].cancel()
    thread.join(SECONDS)
    assert time.monotonic() - began < SOON
    assert isinstance(ended[0], Canceled)
    assert model.rows == ledger.spending.spent([card.digest])[card.digest]


def test_a_deadline_is_kept_while_the_model_hangs(engine: Engine, model: Model) -> None:
    model.act = remote_models.hang
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        job(engine, model.card(), greyish(1)[0], kind="prediction", deadline=0.3)
    assert time.monotonic() - began < SOON


def test_others_go_on_and_the_engine_does_not_seem_to_hang(engine: Engine, model: Model) -> None:
    model.act = remote_models.hang
    started = Started()
    thread, ended = in_background(
        lambda: job(engine, model.card(), greyish(1)[0], kind="prediction", started=started)
    )
    wait_until(lambda: model.requests)
    assert not engine.busy
    local = touchstone.wrap(linear_model(classes=4)).oracle
    pixels = (greyish(1)[0] * 255).byte().permute(1, 2, 0).numpy()
    for _ in range(20):
        engine.start(touchstone.evaluation.look_at(pixels, local), local).result()
    wait_until(lambda: engine.steps == 20)
    assert engine.figures()["queries"]["forward"] == 20
    with remote_models.serving() as other:
        job(engine, other.card(), greyish(1)[0], kind="prediction")
    assert not ended
    started.tasks[0].cancel()
    thread.join(SECONDS)
    assert isinstance(ended[0], Canceled)
    assert engine.figures()["remote_models"]["far-away"]["queries"]["forward"] <= 1


def test_a_stop_is_heard_while_the_model_hangs(ways: Ways, model: Model) -> None:
    engine = Engine("cpu", shelf=Shelf(), ways=ways)  # type: ignore[arg-type]
    model.act = remote_models.hang
    thread, ended = in_background(lambda: job(engine, model.card(), greyish(1)[0], kind="prediction"))
    wait_until(lambda: model.requests)
    began = time.monotonic()
    engine.stop()
    thread.join(SECONDS)
    assert time.monotonic() - began < SOON
    assert isinstance(ended[0], WorkerStopping)


def test_jobs_share_requests_and_one_fault_is_one_jobs(ways: Ways, model: Model) -> None:
    """A row that the model chokes on fails its own job, whether it spoils the row or the whole request."""
    dark = torch.zeros(1, 3, 8, 8)
    oracle = ways.to(model.card(parallel=1))
    model.shape = lambda z: [
        [float("nan")] * 4 if np.allclose(row, model.bias) else row.tolist() for row in z
    ]
    assert faults(oracle, dark) == [True, False, False]
    assert model.requests == 1

    def choke(handler: remote_models.Handler) -> None:
        x = np.array(json.loads(model.bodies[-1])["instances"])
        spoiled = any(not one.any() for one in x)
        handler.reply(400 if spoiled else 200, {"predictions": model.logits(x).tolist()})

    model.act = choke
    assert faults(oracle, dark) == [True, False, False]
    assert model.requests == 2 + 3


def faults(oracle: RemoteOracle, dark: torch.Tensor) -> list[bool]:
    """Of three tasks that share a pass, which fail."""
    ended: dict[int, Any] = {}
    batcher = Batcher()
    for number, x in enumerate([dark, greyish(1), greyish(2)]):
        task = Task(touchstone.evaluation.look(x, saved=False), oracle)
        task.done = lambda result, error, number=number: ended.update({number: error})  # type: ignore[misc]
        batcher.add(task)
    batcher.step()
    return [isinstance(ended[number], RemoteAnswer) for number in range(3)]


def test_an_idle_lane_ends_its_thread_and_starts_again(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touchstone.engine.scheduler.engine, "IDLE_SECONDS", 0.1)

    before = threading.enumerate()

    def threads() -> list[str]:
        now = (one for one in threading.enumerate() if one not in before)
        return [one.name for one in now if one.name.startswith("remote ")]

    for _ in range(2):
        job(engine, model.card(), greyish(1)[0], kind="prediction")
        assert threads() == ["remote far-away"]
        wait_until(lambda: not threads())
    assert len(model.connections) == 2


def reach(engine: Engine, card: Manifest) -> Any:
    return engine.start(reached(card), engine.remote(card)).result()


def test_a_handful_of_questions_tells_what_it_is(engine: Engine, model: Model, ledger: Ledger) -> None:
    card = model.card()
    found = reach(engine, card)
    assert (found.deterministic, found.batch_invariant, found.decisions_only) == (True, True, False)
    assert 0 < found.query_seconds < SECONDS
    assert found.queries == QUERIES == model.rows == ledger.spending.spent([card.digest])[card.digest]


def test_what_wavers_and_what_minds_its_neighbours_is_found(engine: Engine, model: Model) -> None:
    model.shape = lambda z: (z + model.requests / 10).tolist()
    assert not reach(engine, model.card()).deterministic
    model.shape = lambda z: (z - z.mean(0) * (len(z) > 1)).tolist()
    found = reach(engine, model.card(batch=4))
    assert (found.deterministic, found.batch_invariant) == (True, False)


def test_what_is_not_as_declared_is_not_registered(engine: Engine, model: Model) -> None:
    model.shape = lambda z: z[:, :2].tolist()
    with pytest.raises(RemoteAnswer, match="4 numbers, not 2"):
        reach(engine, model.card())
    model.shape = lambda z: z.tolist()
    with pytest.raises(QueryBudgetSpent):
        reach(engine, model.card(budget=3))
