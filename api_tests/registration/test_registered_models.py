"""Registered models from the file to the jobs that use them: immutable versions, shared by all workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api_tests.support.color_model import FIELDS, NAMES, color_onnx, color_zip
from api_tests.support.linear_models import exact_distances, gray_images
from api_tests.support.own_models import (
    build_manifest,
    linear_net,
    linear_onnx,
    linear_safetensors,
    write_timm_stub,
)
from api_tests.support.registry_worker import RegistryWorker, probe_linear_model
from touchstone.errors import (
    UnknownModel,
)
from touchstone.registration import trial_child
from touchstone.registration.examination import complete_manifest
from workers.trials import TrialOutcome


def exact_distance(norm: str, *, seed: int = 0) -> float:
    """How far the picture is from the other class, by the model's own weights."""
    return float(exact_distances(linear_net(seed=seed), gray_images(1), norm)[0])


def test_registered_onnx_model_is_attacked_at_its_exact_distance(worker: RegistryWorker) -> None:
    job = worker.run(worker.register(linear_onnx(end="Softmax")))
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert (job.progress.done, job.progress.total) == (5, 5)
    manifest = worker.registry.manifest("lin")
    assert manifest.card() == job.result["model"]
    assert (manifest.softmax, manifest.parameters, manifest.digest) == ("removed", 386, job.submission.file)
    assert job.result["probe"]["gradient_agrees"] is True
    found = worker.registry.registration_probe(manifest)
    assert found is not None
    assert found.model_dump(mode="json") == job.result["probe"]
    assert worker.ledger.probes.read([manifest.digest])[manifest.digest].rows == found.rows

    steps = exact_distance("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = worker.accept(manifest, norm="linf", eps=eps / 255, steps=20)
        assert worker.result(attack)["outcome"] == outcome, f"at {eps}/255, the distance is {steps:.2f}/255"


def test_accuracy_on_examples_is_in_the_result_and_on_the_card(worker: RegistryWorker) -> None:
    swapped = ("white", *NAMES[1:7], "black")
    job = worker.run(worker.register_with_examples(color_onnx(), color_zip(names=swapped), FIELDS))
    assert (job.status, job.error) == ("succeeded", None)
    assert (job.progress.done, job.progress.total) == (6, 6)
    assert job.result is not None
    found = job.result["probe"]["examples"]
    assert (found["count"], found["correct"], found["accuracy"]) == (40, 30, 0.75)
    assert found["warnings"] == [], "no usual alternative is right"
    probe = worker.registry.registration_probe(worker.registry.manifest("colors"))
    assert probe is not None
    assert probe.model_dump(mode="json") == job.result["probe"]


def test_registered_safetensors_model_is_certified_and_attacked_at_its_distance(
    worker: RegistryWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_timm_stub(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = trial_child._environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(trial_child, "_environment", lambda: environment)
    worker.result(worker.register(linear_safetensors(), architecture="timm/linear"))
    manifest, distance = worker.registry.manifest("lin"), exact_distance("l2")
    how = {"sigma": distance, "n0": 100, "n": 4_000, "alpha": 0.001}
    found = worker.result(worker.accept(manifest, "certificate", "smoothing", **how))
    assert 0.85 * distance < found["radius"] <= distance, "the distance, less the confidence interval"
    steps = exact_distance("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = worker.accept(manifest, norm="linf", eps=eps / 255, steps=20)
        assert worker.result(attack)["outcome"] == outcome


def test_invalid_model_fails_its_job_and_is_not_registered(worker: RegistryWorker) -> None:
    job = worker.run(worker.register(linear_onnx(classes=3)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.extra) == ("invalid_model", {"field": "classes"})
    with pytest.raises(UnknownModel):
        worker.registry.manifest("lin")


def make_trials_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_child.py").write_text("import time\ntime.sleep(60)")
    environment = {**trial_child._environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(trial_child, "_environment", lambda: environment)
    monkeypatch.setattr(trial_child, "MODULE", "hanging_child")


def test_running_registrations_end_soon_after_a_cancel(
    worker: RegistryWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trials_hang(tmp_path, monkeypatch)
    jobs = [worker.register(linear_onnx()), worker.register(linear_onnx(seed=1))]
    threads = [threading.Thread(target=worker.runner, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    while worker.ledger.count_by_status()["running"] < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    for job in jobs:
        worker.ledger.cancel(job)
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 20
    assert [worker.ledger.read(job).status for job in jobs] == ["canceled"] * 2
    assert not worker.versions.all()


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"deadline": 0.5}, "deadline_exceeded"), ({"probe_seconds": 0.5}, "model_too_costly")],
)
def test_registration_fails_at_its_deadline_or_probe_time_limit(
    make_worker: Callable[..., RegistryWorker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    code: str,
) -> None:
    make_trials_hang(tmp_path, monkeypatch)
    worker = make_worker(**changes)
    job = worker.run(worker.register(linear_onnx()))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", code)


@pytest.mark.parametrize("end", ["canceled", "lost"])
def test_trial_result_registers_nothing_after_cancel_or_lost_lease(worker: RegistryWorker, end: str) -> None:
    data = linear_onnx()
    job = worker.register(data)

    def try_slowly(*_: Any, **__: Any) -> TrialOutcome:
        worker.keeper.close()  # so that it sends no heartbeats any more
        if end == "canceled":
            worker.ledger.cancel(job)
        else:
            worker.ledger.client.zadd("ts:leases", {job: 1})
            assert worker.ledger.reap().lost == (job,)
        return TrialOutcome(complete_manifest(build_manifest(data), data), probe_linear_model(), 1.0)

    replace(worker.runner, trials=try_slowly)(job)
    assert worker.versions.all() == {}
    assert worker.ledger.read(job).status == ("canceled" if end == "canceled" else "queued")
