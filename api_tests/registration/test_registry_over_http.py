"""What the service and the library see of registered models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api_tests.support.fake_service import MODEL_PROBE, Api, png
from api_tests.support.own_models import REGISTRATION_FIELDS, build_manifest, linear_onnx
from touchstone.errors import (
    LedgerUnavailable,
)
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL, Submission
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.models.store import ZOO, ModelStore
from touchstone.registration.examination import complete_manifest
from touchstone.registration.request import Registration
from touchstone.registration.submission import prepare
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.model_store import RegisteredStore

ZOO_MODEL = "fashion-mnist-cnn"


def test_zoo_models_are_read_without_a_ledger(settings: Settings, tmp_path: Path) -> None:
    nowhere = Ledger(f"unix://{tmp_path}/none.sock", settings)
    store: ModelStore = RegisteredStore(nowhere, open_blobs(settings))
    manifest = store.manifest(ZOO_MODEL)
    assert store.digests(ZOO_MODEL) == (manifest.digest,)
    assert store.weights(manifest) == ZOO.weights(manifest)
    assert store.registration_probe(manifest) is None
    with pytest.raises(LedgerUnavailable):
        store.manifest("lin")


def test_service_lists_shows_and_uses_registered_models_and_versions(api: Api) -> None:
    ledger, blobs = Ledger(str(api.settings.redis_url), api.settings), open_blobs(api.settings)
    manifests = []
    for seed in (0, 1):
        data = linear_onnx(seed=seed)
        manifests.append(complete_manifest(build_manifest(data), data))
        blobs.put(data)
        TenantLedger.of(ledger, LOCAL).versions.register(manifests[-1], MODEL_PROBE)
    listed = api.client.get("/v1/models").json()["items"]
    assert [one["id"] for one in listed] == [*ZOO.manifests(), "lin"]
    shown = api.client.get("/v1/models/lin").json()
    assert (shown["digest"], shown["softmax"]) == (manifests[1].digest, "none")
    assert shown["probe"]["gradient_agrees"] is True
    old = f"lin@{manifests[0].digest[7:19]}"
    assert api.client.get(f"/v1/models/{old}").json()["digest"] == manifests[0].digest
    assert api.client.get("/v1/models/lin@000000000000").status_code == 404
    for name, manifest in (("lin", manifests[1]), (old, manifests[0])):
        form = {"model": name, "eps": "8/255", "label": "dog"}
        job = api.client.post("/v1/attacks/pgd", data=form, files={"image": png()}).json()
        assert job["model"] == {"id": "lin", "digest": manifest.digest}
        assert job["label"] == 1


def test_registration_job_is_shown_without_image_and_refuses_rerun(api: Api) -> None:
    ledger = Ledger(str(api.settings.redis_url), api.settings)
    submission = prepare(Registration.parse(REGISTRATION_FIELDS), linear_onnx(), limit=2**20)
    job = ledger.accept(submission)[0].id
    shown = api.client.get(f"/v1/jobs/{job}").json()
    assert (shown["kind"], shown["method"], shown["image"]) == ("registration", "probe", None)
    assert shown["parameters"]["classes"] == ["cat", "dog"]
    assert shown["links"]["artifacts"] == {}
    assert api.client.get(f"/v1/jobs/{job}/artifacts/original.png").status_code == 404
    assert api.client.post(f"/v1/jobs/{job}/rerun").json()["code"] == "job_conflict"
    assert api.client.post(f"/v1/jobs/{job}/continue", json={"n": 100}).json()["code"] == "job_conflict"
    assert [one["id"] for one in api.client.get("/v1/jobs?kind=registration").json()["items"]] == [job]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "registration"},
        {"kind": "inference"},
        {"file": "sha256:" + "0" * 64},
        {"image": None},
    ],
)
def test_submission_without_the_image_or_file_of_its_kind_is_invalid(
    submission: Submission, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="works on one"):
        Submission.model_validate({**submission.model_dump(), **changes})
