"""Registered models from the file to the job that uses them: versions that never change, for everybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from api_tests.support.linear_models import exact_distances, gray_images
from api_tests.support.own_models import (
    REGISTRATION_FIELDS,
    build_manifest,
    linear_net,
    linear_onnx,
    linear_safetensors,
    write_timm_stub,
)
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
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import RegisteredStore
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner
from workers.trials import TrialOutcome

ZOO_MODEL = "fashion-mnist-cnn"


@cache
def probe_linear_model() -> ModelProbe:
    """What is found out about the linear model; close enough for each of its likes."""
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

    def add_version(self, data: bytes, **said: Any) -> Manifest:
        """Register a file as if it had been tried."""
        self.blobs.put(data)
        card = complete_manifest(build_manifest(data, **said), data)
        self.versions.register(card, probe_linear_model())
        return card

    def register(self, data: bytes, **said: Any) -> str:
        """Accept a registration as the service would."""
        submission = prepare(Registration.parse({**REGISTRATION_FIELDS, **said}), data, limit=2**20)
        self.blobs.put(data)
        return self.ledger.accept(submission)[0].id

    def accept(self, card: Manifest, kind: str = "attack", method: str = "pgd", **parameters: Any) -> str:
        file, image = canonicalize(picture())
        self.blobs.put(file)
        model = ModelRef(id=card.id, digest=card.digest)
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
def benches(settings: Settings) -> Iterator[Callable[..., InProcessWorker]]:
    made: list[InProcessWorker] = []

    def make(**changes: Any) -> InProcessWorker:
        made.append(InProcessWorker(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(benches: Callable[..., InProcessWorker]) -> InProcessWorker:
    return benches()


def pixels() -> Any:
    return (gray_images(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def picture() -> bytes:
    return encode(pixels())


def exact_distance(norm: str, *, seed: int = 0) -> float:
    """How far the picture is from the other class, by the model's own weights."""
    return float(exact_distances(linear_net(seed=seed), gray_images(1), norm)[0])


def test_registered_onnx_model_is_attacked_at_its_exact_distance(bench: InProcessWorker) -> None:
    job = bench.run(bench.register(linear_onnx(end="Softmax")))
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert (job.progress.done, job.progress.total) == (5, 5)
    card = bench.registry.manifest("lin")
    assert card.card() == job.result["model"]
    assert (card.softmax, card.parameters, card.digest) == ("removed", 386, job.submission.file)
    assert job.result["probe"]["gradient_agrees"] is True
    found = bench.registry.registration_probe(card)
    assert found is not None
    assert found.model_dump(mode="json") == job.result["probe"]
    assert bench.ledger.probes.read([card.digest])[card.digest].rows == found.rows

    steps = exact_distance("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = bench.accept(card, norm="linf", eps=eps / 255, steps=20)
        assert bench.result(attack)["outcome"] == outcome, f"at {eps}/255, the distance is {steps:.2f}/255"


def test_registered_safetensors_model_is_certified_and_attacked_at_its_distance(
    bench: InProcessWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_timm_stub(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = trial._environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    bench.result(bench.register(linear_safetensors(), architecture="timm/linear"))
    card, distance = bench.registry.manifest("lin"), exact_distance("l2")
    how = {"sigma": distance, "n0": 100, "n": 4_000, "alpha": 0.001}
    found = bench.result(bench.accept(card, "certificate", "smoothing", **how))
    assert 0.85 * distance < found["radius"] <= distance, "it is the distance itself, less what chance may be"
    steps = exact_distance("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = bench.accept(card, norm="linf", eps=eps / 255, steps=20)
        assert bench.result(attack)["outcome"] == outcome


def test_invalid_model_fails_its_job_and_is_not_registered(bench: InProcessWorker) -> None:
    job = bench.run(bench.register(linear_onnx(classes=3)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.extra) == ("invalid_model", {"field": "classes"})
    with pytest.raises(UnknownModel):
        bench.registry.manifest("lin")


def make_trials_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_child.py").write_text("import time\ntime.sleep(60)")
    environment = {**trial._environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    monkeypatch.setattr(trial, "MODULE", "hanging_child")


def test_running_registrations_end_soon_after_a_cancel(
    bench: InProcessWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trials_hang(tmp_path, monkeypatch)
    jobs = [bench.register(linear_onnx()), bench.register(linear_onnx(seed=1))]
    threads = [threading.Thread(target=bench.runner, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    while bench.ledger.count_by_status()["running"] < 2:
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    for job in jobs:
        bench.ledger.cancel(job)
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 20
    assert [bench.ledger.read(job).status for job in jobs] == ["canceled"] * 2
    assert not bench.versions.all()


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"deadline": 0.5}, "deadline_exceeded"), ({"probe_seconds": 0.5}, "model_too_costly")],
)
def test_registration_fails_at_its_deadline_or_probe_time_limit(
    benches: Callable[..., InProcessWorker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    code: str,
) -> None:
    make_trials_hang(tmp_path, monkeypatch)
    bench = benches(**changes)
    job = bench.run(bench.register(linear_onnx()))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", code)


@pytest.mark.parametrize("end", ["canceled", "lost"])
def test_trial_result_registers_nothing_after_cancel_or_lost_lease(bench: InProcessWorker, end: str) -> None:
    data = linear_onnx()
    job = bench.register(data)

    def try_slowly(*_: Any, **__: Any) -> TrialOutcome:
        bench.keeper.close()  # which hears of nothing any more
        if end == "canceled":
            bench.ledger.cancel(job)
        else:
            bench.ledger.client.zadd("ts:leases", {job: 1})
            assert bench.ledger.reap().lost == (job,)
        return TrialOutcome(complete_manifest(build_manifest(data), data), probe_linear_model(), 1.0)

    replace(bench.runner, trials=try_slowly)(job)
    assert bench.versions.all() == {}
    assert bench.ledger.read(job).status == ("canceled" if end == "canceled" else "queued")


def test_model_versions_stay_usable_and_the_newest_is_current(bench: InProcessWorker) -> None:
    first, second = bench.add_version(linear_onnx()), bench.add_version(linear_onnx(seed=1))
    shelf = bench.registry
    assert [card.digest for card in shelf.versions("lin")] == [second.digest, first.digest]
    assert shelf.manifest("lin") == second
    assert shelf.manifest("lin", first.digest) == first
    assert shelf.manifests()["lin"] == second
    assert list(shelf.manifests())[:-1] == list(ZOO.manifests())
    for name in (f"lin@{first.digest}", f"lin@{first.digest[7:]}", f"lin@{first.digest[7:19]}"):
        assert find_model(shelf, name) == first
    assert shelf.weights(first) == linear_onnx()

    old, new = (bench.result(bench.accept(card, norm="linf", eps=0.1, steps=5)) for card in (first, second))
    z = [linear_net(seed=seed)(gray_images(1)).softmax(1).max().item() for seed in (0, 1)]
    assert [old["original"]["confidence"], new["original"]["confidence"]] == pytest.approx(z, rel=1e-3)
    loaded = bench.engine.metrics()["resident_models"]
    assert [(one["id"], one["bytes"]) for one in loaded] == [("lin", 4 * 386)] * 2
    bench.add_version(linear_onnx())
    assert shelf.manifest("lin") == second, "what is known already changes nothing"


@pytest.mark.parametrize("version", ["", "sha256:", "0" * 11, "0" * 65, "A" * 12, "g" * 12, "0" * 12, "x@y"])
def test_nonexistent_version_raises_unknown_model(bench: InProcessWorker, version: str) -> None:
    bench.add_version(linear_onnx())
    for model in ("lin", ZOO_MODEL):
        with pytest.raises(UnknownModel, match=f"{model} has no version"):
            find_model(bench.registry, f"{model}@{version}")
    with pytest.raises(UnknownModel, match=r"no model named 'nil'.* lin"):
        find_model(bench.registry, f"nil@{version}")


def test_ambiguous_digest_prefix_raises_unknown_model() -> None:
    class Twins:
        def versions(self, model: str) -> list[Manifest]:
            card = ZOO.manifest(ZOO_MODEL)
            return [card.model_copy(update={"digest": f"sha256:{'a' * 12}{end * 52}"}) for end in "bc"]

    twins: Any = Twins()
    with pytest.raises(UnknownModel, match="2 versions begin so"):
        find_model(twins, f"twins@{'a' * 12}")
    assert find_model(twins, f"twins@{'a' * 12}b").digest.endswith("b")


def test_version_keeps_its_manifest_until_it_is_deleted(bench: InProcessWorker) -> None:
    data = linear_onnx()
    first = bench.add_version(data)
    bench.add_version(data)
    with pytest.raises(ModelConflict, match="delete it first"):
        bench.add_version(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert bench.registry.manifest("lin") == first
    bench.result(bench.accept(first, norm="linf", eps=0.1, steps=5))
    bench.versions.delete("lin")
    again = bench.add_version(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert bench.registry.manifest("lin") == again, "and not what was known of the one before"
    shown = bench.result(bench.accept(again, norm="linf", eps=0.1, steps=5))["original"]["confidence"]
    expected = linear_net()((gray_images(1) - 0.5) / 0.5).softmax(1).max().item()
    assert shown == pytest.approx(expected, rel=1e-3), "nor by its normalisation"


def test_model_is_not_deleted_while_a_job_uses_it(bench: InProcessWorker) -> None:
    first, second = bench.add_version(linear_onnx()), bench.add_version(linear_onnx(seed=1))
    other = bench.add_version(linear_onnx(), id="other")
    job = bench.accept(first, norm="linf", eps=0.1, steps=5)
    for state in ("queued", "running"):
        for digest in (None, first.digest):
            with pytest.raises(ModelInUse, match=f"{job} is {state}") as refused:
                bench.versions.delete("lin", digest)
            assert refused.value.extra == {"job": job}
        claimed = bench.ledger.claim(job, "w1")
    bench.versions.delete("other")
    bench.versions.delete("lin", second.digest)
    assert bench.registry.manifest("lin") == first, "the one before is current again"
    assert claimed is None
    bench.ledger.finish(job, 1, status="failed")
    bench.versions.delete("lin")
    for card in (first, second, other):
        with pytest.raises(UnknownModel):
            bench.registry.manifest(card.id)
        with pytest.raises(UnknownModel):
            bench.versions.delete(card.id)
    assert bench.ledger.read(job).submission.model.digest == first.digest, "its jobs tell what they ran on"
    assert not list(bench.ledger.client.keys("ts:version:*"))  # type: ignore[union-attr]


def test_job_on_deleted_model_fails_as_model_unusable(bench: InProcessWorker) -> None:
    card = bench.add_version(linear_onnx())
    bench.versions.delete("lin")
    for kind, method, how in (
        ("attack", "pgd", {"norm": "linf", "eps": 0.1}),
        ("certificate", "smoothing", {"sigma": 0.1, "n": 100, "rule": "e_process"}),
    ):
        job = bench.run(bench.accept(card, kind, method, **how))
        assert job.error is not None
        assert job.status == "failed"
        assert job.error.code == "model_unusable"
        assert "deleted" in job.error.detail


def test_model_with_missing_file_raises_model_unusable(bench: InProcessWorker) -> None:
    card = bench.add_version(linear_onnx())
    with pytest.raises(ModelUnusable, match="its file is gone"):
        bench.registry.weights(card.model_copy(update={"digest": "sha256:" + "0" * 64}))


def test_other_worker_sees_registrations_and_deletions_at_once(
    benches: Callable[..., InProcessWorker],
) -> None:
    here, there = benches(), benches()
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")
    card = here.add_version(linear_onnx())
    assert there.registry.manifest("lin") == card
    assert there.result(there.accept(card, norm="linf", eps=0.1, steps=5))["success"]
    newer = there.add_version(linear_onnx(seed=1))
    assert here.registry.manifest("lin") == newer
    here.versions.delete("lin")
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")


def test_loading_a_model_does_not_break_gradients_in_other_threads() -> None:
    data, stop, failed = linear_onnx(), threading.Event(), []
    card = complete_manifest(build_manifest(data), data)

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
        build_module(card, data)
    stop.set()
    thread.join()
    assert not failed


def test_concurrent_registrations_of_one_model_make_one_version(bench: InProcessWorker) -> None:
    card = complete_manifest(build_manifest(linear_onnx()), linear_onnx())
    threads = [
        threading.Thread(target=bench.versions.register, args=[card, probe_linear_model()], daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(refs) for refs in bench.versions.all().values()] == [1]
