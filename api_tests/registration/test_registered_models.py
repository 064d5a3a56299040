"""Registered models from the file to the jobs that use them: immutable versions, shared by all workers."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from api_tests.support.color_model import FIELDS, NAMES, color_onnx, color_zip
from api_tests.support.linear_models import exact_distances, gray_images
from api_tests.support.own_models import (
    REGISTRATION_FIELDS,
    build_manifest,
    linear_net,
    linear_onnx,
    linear_safetensors,
    write_timm_stub,
)
from touchstone.digests import digest_of
from touchstone.engine import Engine
from touchstone.errors import (
    ModelConflict,
    ModelInUse,
    ModelUnusable,
    UnknownModel,
)
from touchstone.evaluation.local import canonicalize
from touchstone.evaluation.run import run_job
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, ModelRef, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.loader import build_module
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.models.store import ZOO, find_model
from touchstone.registration import trial
from touchstone.registration.examination import complete_manifest, probe_model
from touchstone.registration.examples import prepare_examples
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare, prepare_known
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import RegisteredStore
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner
from workers.trials import TrialOutcome

ZOO_MODEL = "fashion-mnist-cnn"


@cache
def probe_linear_model() -> ModelProbe:
    """The probe of the linear model, also used for others of its size."""
    data = linear_onnx()
    return probe_model(build_manifest(data), data, lambda _: None).probe


class InProcessWorker:
    """A worker in this process: ledger, blobs, registry, engine and runner of its own."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.versions = TenantLedger.of(self.ledger, LOCAL).versions
        self.blobs = open_blobs(settings)
        self.registry = RegisteredStore(self.ledger, self.blobs)
        self.engine = Engine("cpu", store=self.registry)
        self.keeper = LeaseKeeper("w1", self.ledger, self.engine, settings, give_up=lambda _: None)
        answer = partial(run_job, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, answer, settings, self.registry)
        self.keeper.start()

    def close(self) -> None:
        self.keeper.close()
        self.engine.stop()
        self.ledger.close()

    def add_version(self, data: bytes, **fields: Any) -> Manifest:
        """Register a file as if it had been tried."""
        self.blobs.put(data)
        manifest = complete_manifest(build_manifest(data, **fields), data)
        self.versions.register(manifest, probe_linear_model())
        return manifest

    def register(self, data: bytes, **fields: Any) -> str:
        """Accept a registration as the service would."""
        submission = prepare(Registration.parse({**REGISTRATION_FIELDS, **fields}), data, limit=2**20)
        self.blobs.put(data)
        return self.ledger.accept(submission)[0].id

    def register_with_examples(self, data: bytes, archive: bytes, fields: Mapping[str, Any]) -> str:
        """The same with examples in a zip."""
        registration = Registration.parse(fields)
        examples = prepare_examples(io.BytesIO(archive), registration.names, canonicalize)
        submission = prepare_known(registration, digest_of(data), "onnx", examples.ref)
        self.blobs.put_many([data, examples.content])
        return self.ledger.accept(submission)[0].id

    def accept(self, manifest: Manifest, kind: str = "attack", method: str = "pgd", **parameters: Any) -> str:
        file, image = canonicalize(picture())
        self.blobs.put(file)
        model = ModelRef(id=manifest.id, digest=manifest.digest)
        submission = Submission(kind=kind, method=method, model=model, image=image, parameters=parameters)
        return self.ledger.accept(submission)[0].id

    def run(self, job: str) -> Job:
        self.runner(job)
        return self.ledger.read(job)

    def result(self, job: str) -> dict[str, Any]:
        done = self.run(job)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        return done.result


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[Callable[..., InProcessWorker]]:
    made: list[InProcessWorker] = []

    def make(**changes: Any) -> InProcessWorker:
        made.append(InProcessWorker(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: Callable[..., InProcessWorker]) -> InProcessWorker:
    return make_worker()


def pixels() -> Any:
    return (gray_images(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def picture() -> bytes:
    return encode(pixels())


def exact_distance(norm: str, *, seed: int = 0) -> float:
    """How far the picture is from the other class, by the model's own weights."""
    return float(exact_distances(linear_net(seed=seed), gray_images(1), norm)[0])


def test_registered_onnx_model_is_attacked_at_its_exact_distance(worker: InProcessWorker) -> None:
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


def test_accuracy_on_examples_is_in_the_result_and_on_the_card(worker: InProcessWorker) -> None:
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
    worker: InProcessWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_timm_stub(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = trial._environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    worker.result(worker.register(linear_safetensors(), architecture="timm/linear"))
    manifest, distance = worker.registry.manifest("lin"), exact_distance("l2")
    how = {"sigma": distance, "n0": 100, "n": 4_000, "alpha": 0.001}
    found = worker.result(worker.accept(manifest, "certificate", "smoothing", **how))
    assert 0.85 * distance < found["radius"] <= distance, "the distance, less the confidence interval"
    steps = exact_distance("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = worker.accept(manifest, norm="linf", eps=eps / 255, steps=20)
        assert worker.result(attack)["outcome"] == outcome


def test_invalid_model_fails_its_job_and_is_not_registered(worker: InProcessWorker) -> None:
    job = worker.run(worker.register(linear_onnx(classes=3)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.extra) == ("invalid_model", {"field": "classes"})
    with pytest.raises(UnknownModel):
        worker.registry.manifest("lin")


def make_trials_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_child.py").write_text("import time\ntime.sleep(60)")
    environment = {**trial._environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    monkeypatch.setattr(trial, "MODULE", "hanging_child")


def test_running_registrations_end_soon_after_a_cancel(
    worker: InProcessWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    make_worker: Callable[..., InProcessWorker],
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
def test_trial_result_registers_nothing_after_cancel_or_lost_lease(worker: InProcessWorker, end: str) -> None:
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


def test_model_versions_stay_usable_and_the_newest_is_current(worker: InProcessWorker) -> None:
    first, second = worker.add_version(linear_onnx()), worker.add_version(linear_onnx(seed=1))
    store = worker.registry
    assert [manifest.digest for manifest in store.versions("lin")] == [second.digest, first.digest]
    assert store.manifest("lin") == second
    assert store.manifest("lin", first.digest) == first
    assert store.manifests()["lin"] == second
    assert list(store.manifests())[:-1] == list(ZOO.manifests())
    for name in (f"lin@{first.digest}", f"lin@{first.digest[7:]}", f"lin@{first.digest[7:19]}"):
        assert find_model(store, name) == first
    assert store.weights(first) == linear_onnx()

    old, new = (
        worker.result(worker.accept(manifest, norm="linf", eps=0.1, steps=5)) for manifest in (first, second)
    )
    z = [linear_net(seed=seed)(gray_images(1)).softmax(1).max().item() for seed in (0, 1)]
    assert [old["original"]["confidence"], new["original"]["confidence"]] == pytest.approx(z, rel=1e-3)
    loaded = worker.engine.metrics()["resident_models"]
    assert [(one["id"], one["bytes"]) for one in loaded] == [("lin", 4 * 386)] * 2
    worker.add_version(linear_onnx())
    assert store.manifest("lin") == second, "what is known already changes nothing"


@pytest.mark.parametrize("version", ["", "sha256:", "0" * 11, "0" * 65, "A" * 12, "g" * 12, "0" * 12, "x@y"])
def test_nonexistent_version_raises_unknown_model(worker: InProcessWorker, version: str) -> None:
    worker.add_version(linear_onnx())
    for model in ("lin", ZOO_MODEL):
        with pytest.raises(UnknownModel, match=f"{model} has no version"):
            find_model(worker.registry, f"{model}@{version}")
    with pytest.raises(UnknownModel, match=r"no model named 'nil'.* lin"):
        find_model(worker.registry, f"nil@{version}")


def test_ambiguous_digest_prefix_raises_unknown_model() -> None:
    class Twins:
        def versions(self, model: str) -> list[Manifest]:
            manifest = ZOO.manifest(ZOO_MODEL)
            return [manifest.model_copy(update={"digest": f"sha256:{'a' * 12}{end * 52}"}) for end in "bc"]

    twins: Any = Twins()
    with pytest.raises(UnknownModel, match="2 versions begin so"):
        find_model(twins, f"twins@{'a' * 12}")
    assert find_model(twins, f"twins@{'a' * 12}b").digest.endswith("b")


def test_version_keeps_its_manifest_until_it_is_deleted(worker: InProcessWorker) -> None:
    data = linear_onnx()
    first = worker.add_version(data)
    worker.add_version(data)
    with pytest.raises(ModelConflict, match="delete it first"):
        worker.add_version(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert worker.registry.manifest("lin") == first
    worker.result(worker.accept(first, norm="linf", eps=0.1, steps=5))
    worker.versions.delete("lin")
    again = worker.add_version(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert worker.registry.manifest("lin") == again, "and not what was known of the one before"
    shown = worker.result(worker.accept(again, norm="linf", eps=0.1, steps=5))["original"]["confidence"]
    expected = linear_net()((gray_images(1) - 0.5) / 0.5).softmax(1).max().item()
    assert shown == pytest.approx(expected, rel=1e-3), "nor by its normalization"


def test_model_is_not_deleted_while_a_job_uses_it(worker: InProcessWorker) -> None:
    first, second = worker.add_version(linear_onnx()), worker.add_version(linear_onnx(seed=1))
    other = worker.add_version(linear_onnx(), id="other")
    job = worker.accept(first, norm="linf", eps=0.1, steps=5)
    for state in ("queued", "running"):
        for digest in (None, first.digest):
            with pytest.raises(ModelInUse, match=f"{job} is {state}") as refused:
                worker.versions.delete("lin", digest)
            assert refused.value.extra == {"job": job}
        claimed = worker.ledger.claim(job, "w1")
    worker.versions.delete("other")
    worker.versions.delete("lin", second.digest)
    assert worker.registry.manifest("lin") == first, "the one before is current again"
    assert claimed is None
    worker.ledger.finish(job, 1, status="failed")
    worker.versions.delete("lin")
    for manifest in (first, second, other):
        with pytest.raises(UnknownModel):
            worker.registry.manifest(manifest.id)
        with pytest.raises(UnknownModel):
            worker.versions.delete(manifest.id)
    assert worker.ledger.read(job).submission.model.digest == first.digest, "its jobs tell what they ran on"
    assert not list(worker.ledger.client.keys("ts:version:*"))  # type: ignore[union-attr]


def test_job_on_deleted_model_fails_as_model_unusable(worker: InProcessWorker) -> None:
    manifest = worker.add_version(linear_onnx())
    worker.versions.delete("lin")
    for kind, method, how in (
        ("attack", "pgd", {"norm": "linf", "eps": 0.1}),
        ("certificate", "smoothing", {"sigma": 0.1, "n": 100, "rule": "e_process"}),
    ):
        job = worker.run(worker.accept(manifest, kind, method, **how))
        assert job.error is not None
        assert job.status == "failed"
        assert job.error.code == "model_unusable"
        assert "deleted" in job.error.detail


def test_model_with_missing_file_raises_model_unusable(worker: InProcessWorker) -> None:
    manifest = worker.add_version(linear_onnx())
    with pytest.raises(ModelUnusable, match="its file is missing"):
        worker.registry.weights(manifest.model_copy(update={"digest": "sha256:" + "0" * 64}))


def test_other_worker_sees_registrations_and_deletions_at_once(
    make_worker: Callable[..., InProcessWorker],
) -> None:
    here, there = make_worker(), make_worker()
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")
    manifest = here.add_version(linear_onnx())
    assert there.registry.manifest("lin") == manifest
    assert there.result(there.accept(manifest, norm="linf", eps=0.1, steps=5))["success"]
    newer = there.add_version(linear_onnx(seed=1))
    assert here.registry.manifest("lin") == newer
    here.versions.delete("lin")
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")


def test_loading_a_model_does_not_break_gradients_in_other_threads() -> None:
    data, stop, failed = linear_onnx(), threading.Event(), []
    manifest = complete_manifest(build_manifest(data), data)

    def differentiate() -> None:
        net = torch.nn.Sequential(linear_net(), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        while not stop.is_set():
            x = gray_images(1).requires_grad_()
            try:
                torch.autograd.grad(net(x).sum(), x)
            except RuntimeError as error:
                failed.append(error)

    thread = threading.Thread(target=differentiate)
    thread.start()
    for _ in range(20):
        build_module(manifest, data)
    stop.set()
    thread.join()
    assert not failed


def test_concurrent_registrations_of_one_model_make_one_version(worker: InProcessWorker) -> None:
    manifest = complete_manifest(build_manifest(linear_onnx()), linear_onnx())
    threads = [
        threading.Thread(target=worker.versions.register, args=[manifest, probe_linear_model()], daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(refs) for refs in worker.versions.all().values()] == [1]
