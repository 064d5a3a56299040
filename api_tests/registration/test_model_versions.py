"""Versions of registered models: immutable, shared by all workers, deleted only once no job uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from api_tests.support.linear_models import gray_images
from api_tests.support.own_models import (
    build_manifest,
    linear_net,
    linear_onnx,
)
from api_tests.support.registry_worker import RegistryWorker, probe_linear_model
from touchstone.errors import (
    ModelConflict,
    ModelInUse,
    ModelUnusable,
    UnknownModel,
)
from touchstone.models.loader import build_module
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, find_model
from touchstone.registration.examination import complete_manifest

ZOO_MODEL = "fashion-mnist-cnn"


def test_model_versions_stay_usable_and_the_newest_is_current(worker: RegistryWorker) -> None:
    first, second = worker.add_version(linear_onnx()), worker.add_version(linear_onnx(seed=1))
    store = worker.registry
    assert store.digests("lin") == (second.digest, first.digest)
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
def test_nonexistent_version_raises_unknown_model(worker: RegistryWorker, version: str) -> None:
    worker.add_version(linear_onnx())
    for model in ("lin", ZOO_MODEL):
        with pytest.raises(UnknownModel, match=f"{model} has no version"):
            find_model(worker.registry, f"{model}@{version}")
    with pytest.raises(UnknownModel, match=r"no model named 'nil'.* lin"):
        find_model(worker.registry, f"nil@{version}")


def test_ambiguous_digest_prefix_raises_unknown_model() -> None:
    class Twins:
        def digests(self, model: str) -> list[str]:
            return [f"sha256:{'a' * 12}{end * 52}" for end in "bc"]

        def manifest(self, model: str, digest: str) -> Manifest:
            return ZOO.manifest(ZOO_MODEL).model_copy(update={"digest": digest})

    twins: Any = Twins()
    with pytest.raises(UnknownModel, match="2 versions begin so"):
        find_model(twins, f"twins@{'a' * 12}")
    assert find_model(twins, f"twins@{'a' * 12}b").digest.endswith("b")


def test_version_keeps_its_manifest_until_it_is_deleted(worker: RegistryWorker) -> None:
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


def test_model_is_not_deleted_while_a_job_uses_it(worker: RegistryWorker) -> None:
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


def test_job_on_deleted_model_fails_as_model_unusable(worker: RegistryWorker) -> None:
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


def test_model_with_missing_file_raises_model_unusable(worker: RegistryWorker) -> None:
    manifest = worker.add_version(linear_onnx())
    with pytest.raises(ModelUnusable, match="its file is missing"):
        worker.registry.weights(manifest.model_copy(update={"digest": "sha256:" + "0" * 64}))


def test_other_worker_sees_registrations_and_deletions_at_once(
    make_worker: Callable[..., RegistryWorker],
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


def test_concurrent_registrations_of_one_model_make_one_version(worker: RegistryWorker) -> None:
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
