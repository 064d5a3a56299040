"""Jobs on remote models, and other jobs meanwhile."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

import touchstone
from api_tests.remote_models.queries import FakeStore, run_on_image
from api_tests.support import remote_models
from api_tests.support.linear_models import gray_images, linear_model
from api_tests.support.remote_models import FakeRemoteModel
from api_tests.support.wait import TIMEOUT_SECONDS, wait_until
from touchstone.engine import Batcher, Engine, RemoteAccess, RemoteOracle, Task
from touchstone.errors import (
    DeadlineExceeded,
    Failure,
    GradientRefused,
    InvalidParameter,
    JobCanceled,
    QueryBudgetSpent,
    RemoteAnswer,
    WorkerStopping,
)
from touchstone.ledger.ledger import Ledger
from touchstone.models.manifest import Manifest
from touchstone.registration.remote_probe import QUERIES, probe_remote

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


def image_far_from_boundary(model: FakeRemoteModel) -> tuple[torch.Tensor, float]:
    """An image far from the boundary between the two classes that are left, and its distance."""
    model.bias[2:] -= 1000
    images = gray_images(100)
    z, (one, two) = model.logits(images.double().numpy()), model.weight[:2]
    far = np.abs(z[:, 0] - z[:, 1]) / np.linalg.norm(one - two)
    return images[int(far.argmax())], float(far.max())


def test_remote_linear_model_certified_radius_matches_theory(
    engine: Engine, model: FakeRemoteModel, ledger: Ledger
) -> None:
    card = model.manifest(parallel=4, batch=64)
    image, margin = image_far_from_boundary(model)
    finished = run_on_image(engine, card, image, sigma=margin, n=2000, rule="fixed")
    result = finished.result
    assert 0.85 * margin < result["radius"] < 1.05 * margin
    assert result["predicted_class"]["label"] == int(model.logits(image[None].numpy()).argmax())
    assert result["queries"] == {"forward": model.rows, "backward": 0}
    assert ledger.query_budget.read_spent([card.digest])[card.digest] == model.rows == 2000 + 100 + 33
    assert result["eval_mode_checked"] is None
    assert result["sampling"]["batch_size"] == 64
    assert result["digests"]["model"] == card.digest


@pytest.mark.parametrize("fields", [{"method": "pixeldp", "n": 400}, {"n": 300, "rule": "e_process"}])
def test_certificates_run_on_a_label_only_remote_model(
    engine: Engine, model: FakeRemoteModel, fields: dict[str, Any]
) -> None:
    model.encode_logits = lambda z: z.argmax(1).tolist()
    image, margin = image_far_from_boundary(model)
    finished = run_on_image(
        engine, model.manifest(answers="labels", batch=64), image, sigma=margin / 2, **fields
    )
    assert finished.result["sampling"]["n_used"] == fields["n"]
    assert not finished.result["abstained"]


def test_predictions_by_png_and_by_tensor_agree(engine: Engine, model: FakeRemoteModel) -> None:
    image = gray_images(1)[0]
    tensors = run_on_image(engine, model.manifest(), image, kind="prediction").result
    files = run_on_image(engine, model.manifest(**PNG), image, kind="prediction").result
    assert tensors["original"]["label"] == files["original"]["label"]
    assert tensors["original"]["confidence"] == pytest.approx(files["original"]["confidence"], abs=1e-5)
    assert (files["queries"], model.rows) == ({"forward": 1, "backward": 0}, 2)


def test_noisy_and_gradient_jobs_are_refused_for_png_remote_models(
    engine: Engine, model: FakeRemoteModel
) -> None:
    card = model.manifest(**PNG)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        run_on_image(engine, card, gray_images(1)[0], n=100)
    with pytest.raises(InvalidParameter, match="8-bit files"):
        run_on_image(engine, card, gray_images(1)[0], kind="prediction", defence="smoothing")
    with pytest.raises(GradientRefused, match="pgd"):
        run_on_image(engine, card, gray_images(1)[0], kind="attack", method="pgd")
    assert model.rows == 0


def test_certificate_keeps_its_proven_radius_when_the_query_budget_is_spent(
    engine: Engine, model: FakeRemoteModel
) -> None:
    image, margin = image_far_from_boundary(model)
    finished = run_on_image(
        engine, model.manifest(budget=900), image, sigma=margin, n=100_000, rule="e_process"
    )
    assert finished.result["stopped_by"] == "query_budget_spent"
    assert 700 < finished.result["sampling"]["n_used"] <= 900 - 133
    assert finished.result["radius"] > 0
    assert model.rows <= 900


def test_prediction_fails_when_the_query_budget_is_spent(engine: Engine, model: FakeRemoteModel) -> None:
    card = model.manifest(budget=1)
    run_on_image(engine, card, gray_images(1)[0], kind="prediction")
    with pytest.raises(QueryBudgetSpent, match="1 were sent"):
        run_on_image(engine, card, gray_images(1)[0], kind="prediction")
    assert model.rows == 1


class TaskRecorder:
    """Notes a job's tasks, as the worker's keeper does."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.some = threading.Event()

    def __call__(self, task: Any) -> None:
        self.tasks.append(task)
        self.some.set()


def run_in_background(call: Any) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(call())
        except Failure as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ended


MAX_SECONDS = 20
"""Seconds, of the sixty for which a model hangs."""


def test_cancel_ends_job_while_the_remote_model_hangs(engine: Engine, model: FakeRemoteModel) -> None:
    model.action = remote_models.hang
    started = [TaskRecorder(), TaskRecorder(), TaskRecorder()]
    threads = []
    for one in started:
        threads.append(
            run_in_background(
                lambda one=one: run_on_image(
                    engine, model.manifest(), gray_images(1)[0], kind="prediction", started=one
                )
            )
        )
        wait_until(lambda: model.requests >= 1)
    asked_before = model.requests
    for one, (thread, ended) in reversed(list(zip(started, threads, strict=True))):
        one.some.wait(TIMEOUT_SECONDS)
        began = time.monotonic()
        one.tasks[0].cancel()
        thread.join(TIMEOUT_SECONDS)
        assert time.monotonic() - began < MAX_SECONDS
        assert isinstance(ended[0], JobCanceled)
    assert model.requests == asked_before == 1


def test_cancel_ends_job_while_it_waits_for_the_rate_limit(
    engine: Engine, model: FakeRemoteModel, ledger: Ledger
) -> None:
    card = model.manifest(rate=1, batch=4)
    started = TaskRecorder()
    thread, ended = run_in_background(
        lambda: run_on_image(engine, card, gray_images(1)[0], n=1000, started=started)
    )
    wait_until(lambda: model.rows)
    time.sleep(0.1)
    began = time.monotonic()
    started.tasks[0].cancel()
    thread.join(TIMEOUT_SECONDS)
    assert time.monotonic() - began < MAX_SECONDS
    assert isinstance(ended[0], JobCanceled)
    assert model.rows == ledger.query_budget.read_spent([card.digest])[card.digest]


def test_deadline_ends_job_while_the_remote_model_hangs(engine: Engine, model: FakeRemoteModel) -> None:
    model.action = remote_models.hang
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        run_on_image(engine, model.manifest(), gray_images(1)[0], kind="prediction", deadline=0.3)
    assert time.monotonic() - began < MAX_SECONDS


def test_other_jobs_run_and_engine_is_not_busy_while_a_remote_model_hangs(
    engine: Engine, model: FakeRemoteModel
) -> None:
    model.action = remote_models.hang
    started = TaskRecorder()
    thread, ended = run_in_background(
        lambda: run_on_image(engine, model.manifest(), gray_images(1)[0], kind="prediction", started=started)
    )
    wait_until(lambda: model.requests)
    assert not engine.busy
    local = touchstone.wrap(linear_model(classes=4)).oracle
    pixels = (gray_images(1)[0] * 255).byte().permute(1, 2, 0).numpy()
    for _ in range(20):
        engine.start(touchstone.evaluation.predict_image(pixels, local), local).result()
    wait_until(lambda: engine.steps == 20)
    assert engine.metrics()["queries"]["forward"] == 20
    with remote_models.serve_model() as other:
        run_on_image(engine, other.manifest(), gray_images(1)[0], kind="prediction")
    assert not ended
    started.tasks[0].cancel()
    thread.join(TIMEOUT_SECONDS)
    assert isinstance(ended[0], JobCanceled)
    assert engine.metrics()["remote_models"]["far-away"]["queries"]["forward"] <= 1


def test_engine_stop_ends_job_while_the_remote_model_hangs(
    remote_access: RemoteAccess, model: FakeRemoteModel
) -> None:
    engine = Engine("cpu", store=FakeStore(), remote_access=remote_access)  # type: ignore[arg-type]
    model.action = remote_models.hang
    thread, ended = run_in_background(
        lambda: run_on_image(engine, model.manifest(), gray_images(1)[0], kind="prediction")
    )
    wait_until(lambda: model.requests)
    began = time.monotonic()
    engine.stop()
    thread.join(TIMEOUT_SECONDS)
    assert time.monotonic() - began < MAX_SECONDS
    assert isinstance(ended[0], WorkerStopping)


def test_bad_row_in_a_shared_request_fails_only_its_own_job(
    remote_access: RemoteAccess, model: FakeRemoteModel
) -> None:
    """A row that the model cannot answer fails its own job, whether its row or the whole request is bad."""
    dark = torch.zeros(1, 3, 8, 8)
    oracle = remote_access.oracle_for(model.manifest(parallel=1))
    model.encode_logits = lambda z: [
        [float("nan")] * 4 if np.allclose(row, model.bias) else row.tolist() for row in z
    ]
    assert find_failed_tasks(oracle, dark) == [True, False, False]
    assert model.requests == 1

    def refuse_dark(handler: remote_models.RemoteModelHandler) -> None:
        x = np.array(json.loads(model.bodies[-1])["instances"])
        has_dark = any(not one.any() for one in x)
        handler.reply(400 if has_dark else 200, {"predictions": model.logits(x).tolist()})

    model.action = refuse_dark
    assert find_failed_tasks(oracle, dark) == [True, False, False]
    assert model.requests == 2 + 3


def find_failed_tasks(oracle: RemoteOracle, dark: torch.Tensor) -> list[bool]:
    """Which of three tasks that share a pass fail."""
    ended: dict[int, Any] = {}
    batcher = Batcher()
    for number, x in enumerate([dark, gray_images(1), gray_images(2)]):
        task = Task(touchstone.evaluation.logits_of(x, as_files=False), oracle)
        task.on_done = lambda result, error, number=number: ended.update({number: error})  # type: ignore[misc]
        batcher.add(task)
    batcher.step()
    return [isinstance(ended[number], RemoteAnswer) for number in range(3)]


def test_idle_device_thread_of_remote_model_ends_and_restarts(
    engine: Engine, model: FakeRemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touchstone.engine.scheduler.engine, "IDLE_SECONDS", 0.1)

    before = threading.enumerate()

    def threads() -> list[str]:
        now = (one for one in threading.enumerate() if one not in before)
        return [one.name for one in now if one.name.startswith("remote ")]

    for _ in range(2):
        run_on_image(engine, model.manifest(), gray_images(1)[0], kind="prediction")
        assert threads() == ["remote far-away"]
        wait_until(lambda: not threads())
    assert len(model.connections) == 2


def probe(engine: Engine, card: Manifest) -> Any:
    return engine.start(probe_remote(card), engine.remote_oracle(card)).result()


def test_probe_of_remote_model_finds_its_properties_in_few_queries(
    engine: Engine, model: FakeRemoteModel, ledger: Ledger
) -> None:
    card = model.manifest()
    found = probe(engine, card)
    assert (found.deterministic, found.batch_invariant, found.decisions_only) == (True, True, False)
    assert 0 < found.query_seconds < TIMEOUT_SECONDS
    assert (
        found.queries == QUERIES == model.rows == ledger.query_budget.read_spent([card.digest])[card.digest]
    )


def test_probe_detects_nondeterminism_and_batch_dependence(engine: Engine, model: FakeRemoteModel) -> None:
    model.encode_logits = lambda z: (z + model.requests / 10).tolist()
    assert not probe(engine, model.manifest()).deterministic
    model.encode_logits = lambda z: (z - z.mean(0) * (len(z) > 1)).tolist()
    found = probe(engine, model.manifest(batch=4))
    assert (found.deterministic, found.batch_invariant) == (True, False)


def test_probe_fails_on_undeclared_outputs_or_spent_budget(engine: Engine, model: FakeRemoteModel) -> None:
    model.encode_logits = lambda z: z[:, :2].tolist()
    with pytest.raises(RemoteAnswer, match="4 numbers, not 2"):
        probe(engine, model.manifest())
    model.encode_logits = lambda z: z.tolist()
    with pytest.raises(QueryBudgetSpent):
        probe(engine, model.manifest(budget=3))
