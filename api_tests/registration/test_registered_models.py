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

from api_tests.support.linear_models import distances, greyish
from api_tests.support.own_models import SAID, card_of, linear_net, linear_onnx, linear_safetensors, stub_timm
from touchstone.engine import Engine
from touchstone.errors import (
    ModelConflict,
    ModelInUse,
    ModelUnusable,
    UnknownModel,
)
from touchstone.evaluation.local import canonical
from touchstone.evaluation.run import run
from touchstone.images import encode
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Job, ModelRef, Submission
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.loader import module_of
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Examined
from touchstone.models.store import ZOO, find
from touchstone.registration import trial
from touchstone.registration.examination import completed, examine
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import Registry
from workers.lease_keeper import Keeper
from workers.runner import Runner
from workers.trials import Tried

ZOO_MODEL = "fashion-mnist-cnn"


@cache
def examined() -> Examined:
    """What is found out about the linear model; close enough for each of its likes."""
    data = linear_onnx()
    return examine(card_of(data), data, lambda _: None).examined


class Bench:
    """A worker in this process: ledger, blobs, registry, engine and runner of its own."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(str(settings.redis_url), settings)
        self.versions = Holdings.of(self.ledger, LOCAL).versions
        self.blobs = open_blobs(settings)
        self.registry = Registry(self.ledger, self.blobs)
        self.engine = Engine("cpu", shelf=self.registry)
        self.keeper = Keeper("w1", self.ledger, self.engine, settings, give_up=lambda _: None)
        answer = partial(run, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, answer, settings, self.registry)
        self.keeper.start()

    def close(self) -> None:
        self.keeper.close()
        self.engine.stop()
        self.ledger.close()

    def put(self, data: bytes, **said: Any) -> Manifest:
        """Register a file as if it had been tried."""
        self.blobs.put(data)
        card = completed(card_of(data, **said), data)
        self.versions.register(card, examined())
        return card

    def register(self, data: bytes, **said: Any) -> str:
        """Accept a registration as the service would."""
        submission = prepare(Registration.parse({**SAID, **said}), data, limit=2**20)
        self.blobs.put(data)
        return self.ledger.accept(submission)[0].id

    def accept(self, card: Manifest, kind: str = "attack", method: str = "pgd", **parameters: Any) -> str:
        file, image = canonical(picture())
        self.blobs.put(file)
        model = ModelRef(id=card.id, digest=card.digest)
        submission = Submission(kind=kind, method=method, model=model, image=image, parameters=parameters)
        return self.ledger.accept(submission)[0].id

    def go(self, job: str) -> Job:
        self.runner(job)
        return self.ledger.read(job)

    def result(self, job: str) -> dict[str, Any]:
        done = self.go(job)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        return done.result


@pytest.fixture
def benches(settings: Settings) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**changes: Any) -> Bench:
        made.append(Bench(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(benches: Callable[..., Bench]) -> Bench:
    return benches()


def pixels() -> Any:
    return (greyish(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def picture() -> bytes:
    return encode(pixels())


def exact(norm: str, *, seed: int = 0) -> float:
    """How far the picture is from the other class, by the model's own weights."""
    return float(distances(linear_net(seed=seed), greyish(1), norm)[0])


def test_an_onnx_file_becomes_a_model_whose_distance_is_known(bench: Bench) -> None:
    job = bench.go(bench.register(linear_onnx(end="Softmax")))
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    assert (job.progress.done, job.progress.total) == (5, 5)
    card = bench.registry.manifest("lin")
    assert card.card() == job.result["model"]
    assert (card.softmax, card.parameters, card.digest) == ("removed", 386, job.submission.file)
    assert job.result["probe"]["gradient_agrees"] is True
    found = bench.registry.examined(card)
    assert found is not None
    assert found.model_dump(mode="json") == job.result["probe"]
    assert bench.ledger.probes([card.digest])[card.digest].rows == found.rows

    steps = exact("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = bench.accept(card, norm="linf", eps=eps / 255, steps=20)
        assert bench.result(attack)["outcome"] == outcome, f"at {eps}/255, the distance is {steps:.2f}/255"


def test_safetensors_with_an_architecture_become_one_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_timm(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = trial._environment()
    environment["PYTHONPATH"] += f":{tmp_path}"
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    bench.result(bench.register(linear_safetensors(), architecture="timm/linear"))
    card, distance = bench.registry.manifest("lin"), exact("l2")
    how = {"sigma": distance, "n0": 100, "n": 4_000, "alpha": 0.001}
    found = bench.result(bench.accept(card, "certificate", "smoothing", **how))
    assert 0.85 * distance < found["radius"] <= distance, "it is the distance itself, less what chance may be"
    steps = exact("linf") * 255
    for eps, outcome in ((int(steps), "failure"), (int(steps) + 2, "success")):
        attack = bench.accept(card, norm="linf", eps=eps / 255, steps=20)
        assert bench.result(attack)["outcome"] == outcome


def test_a_model_that_is_no_use_fails_its_job_and_is_not_registered(bench: Bench) -> None:
    job = bench.go(bench.register(linear_onnx(classes=3)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.extra) == ("invalid_model", {"field": "classes"})
    with pytest.raises(UnknownModel):
        bench.registry.manifest("lin")


def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_child.py").write_text("import time\ntime.sleep(60)")
    environment = {**trial._environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(trial, "_environment", lambda: environment)
    monkeypatch.setattr(trial, "MODULE", "hanging_child")


def test_a_registration_is_canceled_soon(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(tmp_path, monkeypatch)
    jobs = [bench.register(linear_onnx()), bench.register(linear_onnx(seed=1))]
    threads = [threading.Thread(target=bench.runner, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    while bench.ledger.counts()["running"] < 2:
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
def test_a_registration_ends_in_time(
    benches: Callable[..., Bench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    code: str,
) -> None:
    hanging(tmp_path, monkeypatch)
    bench = benches(**changes)
    job = bench.go(bench.register(linear_onnx()))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", code)


@pytest.mark.parametrize("end", ["canceled", "lost"])
def test_what_is_found_out_too_late_registers_nothing(bench: Bench, end: str) -> None:
    data = linear_onnx()
    job = bench.register(data)

    def try_slowly(*_: Any, **__: Any) -> Tried:
        bench.keeper.close()  # which hears of nothing any more
        if end == "canceled":
            bench.ledger.cancel(job)
        else:
            bench.ledger.client.zadd("ts:leases", {job: 1})
            assert bench.ledger.reap().lost == (job,)
        return Tried(completed(card_of(data), data), examined(), 1.0)

    replace(bench.runner, trials=try_slowly)(job)
    assert bench.versions.all() == {}
    assert bench.ledger.read(job).status == ("canceled" if end == "canceled" else "queued")


def test_versions_stay_and_the_newest_is_current(bench: Bench) -> None:
    first, second = bench.put(linear_onnx()), bench.put(linear_onnx(seed=1))
    shelf = bench.registry
    assert [card.digest for card in shelf.versions("lin")] == [second.digest, first.digest]
    assert shelf.manifest("lin") == second
    assert shelf.manifest("lin", first.digest) == first
    assert shelf.manifests()["lin"] == second
    assert list(shelf.manifests())[:-1] == list(ZOO.manifests())
    for name in (f"lin@{first.digest}", f"lin@{first.digest[7:]}", f"lin@{first.digest[7:19]}"):
        assert find(shelf, name) == first
    assert shelf.weights(first) == linear_onnx()

    old, new = (bench.result(bench.accept(card, norm="linf", eps=0.1, steps=5)) for card in (first, second))
    z = [linear_net(seed=seed)(greyish(1)).softmax(1).max().item() for seed in (0, 1)]
    assert [old["original"]["confidence"], new["original"]["confidence"]] == pytest.approx(z, rel=1e-3)
    loaded = bench.engine.figures()["resident_models"]
    assert [(one["id"], one["bytes"]) for one in loaded] == [("lin", 4 * 386)] * 2
    bench.put(linear_onnx())
    assert shelf.manifest("lin") == second, "what is known already changes nothing"


@pytest.mark.parametrize("version", ["", "sha256:", "0" * 11, "0" * 65, "A" * 12, "g" * 12, "0" * 12, "x@y"])
def test_a_version_that_there_is_not_is_unknown(bench: Bench, version: str) -> None:
    bench.put(linear_onnx())
    for model in ("lin", ZOO_MODEL):
        with pytest.raises(UnknownModel, match=f"{model} has no version"):
            find(bench.registry, f"{model}@{version}")
    with pytest.raises(UnknownModel, match=r"no model named 'nil'.* lin"):
        find(bench.registry, f"nil@{version}")


def test_the_beginning_of_a_digest_must_tell_versions_apart() -> None:
    class Twins:
        def versions(self, model: str) -> list[Manifest]:
            card = ZOO.manifest(ZOO_MODEL)
            return [card.model_copy(update={"digest": f"sha256:{'a' * 12}{end * 52}"}) for end in "bc"]

    twins: Any = Twins()
    with pytest.raises(UnknownModel, match="2 versions begin so"):
        find(twins, f"twins@{'a' * 12}")
    assert find(twins, f"twins@{'a' * 12}b").digest.endswith("b")


def test_a_version_keeps_its_manifest_until_it_is_deleted(bench: Bench) -> None:
    data = linear_onnx()
    first = bench.put(data)
    bench.put(data)
    with pytest.raises(ModelConflict, match="delete it first"):
        bench.put(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert bench.registry.manifest("lin") == first
    bench.result(bench.accept(first, norm="linf", eps=0.1, steps=5))
    bench.versions.forget("lin")
    again = bench.put(data, mean=[0.5] * 3, std=[0.5] * 3)
    assert bench.registry.manifest("lin") == again, "and not what was known of the one before"
    shown = bench.result(bench.accept(again, norm="linf", eps=0.1, steps=5))["original"]["confidence"]
    expected = linear_net()((greyish(1) - 0.5) / 0.5).softmax(1).max().item()
    assert shown == pytest.approx(expected, rel=1e-3), "nor by its normalisation"


def test_a_model_is_not_deleted_under_a_job(bench: Bench) -> None:
    first, second = bench.put(linear_onnx()), bench.put(linear_onnx(seed=1))
    other = bench.put(linear_onnx(), id="other")
    job = bench.accept(first, norm="linf", eps=0.1, steps=5)
    for state in ("queued", "running"):
        for digest in (None, first.digest):
            with pytest.raises(ModelInUse, match=f"{job} is {state}") as refused:
                bench.versions.forget("lin", digest)
            assert refused.value.extra == {"job": job}
        claimed = bench.ledger.claim(job, "w1")
    bench.versions.forget("other")
    bench.versions.forget("lin", second.digest)
    assert bench.registry.manifest("lin") == first, "the one before is current again"
    assert claimed is None
    bench.ledger.finish(job, 1, status="failed")
    bench.versions.forget("lin")
    for card in (first, second, other):
        with pytest.raises(UnknownModel):
            bench.registry.manifest(card.id)
        with pytest.raises(UnknownModel):
            bench.versions.forget(card.id)
    assert bench.ledger.read(job).submission.model.digest == first.digest, "its jobs tell what they ran on"
    assert not list(bench.ledger.client.keys("ts:version:*"))  # type: ignore[union-attr]


def test_a_job_whose_model_was_deleted_says_so(bench: Bench) -> None:
    card = bench.put(linear_onnx())
    bench.versions.forget("lin")
    for kind, method, how in (
        ("attack", "pgd", {"norm": "linf", "eps": 0.1}),
        ("certificate", "smoothing", {"sigma": 0.1, "n": 100, "rule": "e_process"}),
    ):
        job = bench.go(bench.accept(card, kind, method, **how))
        assert job.error is not None
        assert job.status == "failed"
        assert job.error.code == "model_unusable"
        assert "deleted" in job.error.detail


def test_a_file_that_is_gone_makes_its_model_unusable(bench: Bench) -> None:
    card = bench.put(linear_onnx())
    with pytest.raises(ModelUnusable, match="its file is gone"):
        bench.registry.weights(card.model_copy(update={"digest": "sha256:" + "0" * 64}))


def test_another_worker_knows_it_at_once(benches: Callable[..., Bench]) -> None:
    here, there = benches(), benches()
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")
    card = here.put(linear_onnx())
    assert there.registry.manifest("lin") == card
    assert there.result(there.accept(card, norm="linf", eps=0.1, steps=5))["success"]
    newer = there.put(linear_onnx(seed=1))
    assert here.registry.manifest("lin") == newer
    here.versions.forget("lin")
    with pytest.raises(UnknownModel):
        there.registry.manifest("lin")


def test_loading_a_model_disturbs_nobody() -> None:
    data, stop, failed = linear_onnx(), threading.Event(), []
    card = completed(card_of(data), data)

    def differentiate() -> None:
        net = torch.nn.Sequential(linear_net(), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        while not stop.is_set():
            x = greyish(1).requires_grad_()
            try:
                torch.autograd.grad(net(x).sum(), x)
            except RuntimeError as error:
                failed.append(error)

    thread = threading.Thread(target=differentiate)
    thread.start()
    for _ in range(20):
        module_of(card, data)
    stop.set()
    thread.join()
    assert not failed


def test_many_may_register_the_same(bench: Bench) -> None:
    card = completed(card_of(linear_onnx()), linear_onnx())
    threads = [
        threading.Thread(target=bench.versions.register, args=[card, examined()], daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(refs) for refs in bench.versions.all().values()] == [1]
