"""Registering models over HTTP: what is answered, and what is refused."""

from __future__ import annotations

import json
import pickle
from typing import Any

import httpx2
import pytest

from api_tests.support.fake_service import (
    MODEL_PROBE,
    Api,
    assert_problem,
    fail,
    sample_manifest,
)
from api_tests.support.model_registration import ONNX, manifest, send_registration
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx, linear_safetensors
from service import pagination
from service.openapi import examples
from touchstone.storage.blobs import digest_of


def register_model(api: Api, model: str, data: bytes = ONNX, **said: Any) -> dict[str, Any]:
    """A model that can be used, as it is listed."""
    assert send_registration(api, model, data, **said).status_code == 200
    card: dict[str, Any] = api.client.get(f"/v1/models/{model}").json()
    return card


def test_registration_is_a_job_without_an_image(api: Api) -> None:
    with api.worker.pause():
        response = send_registration(api, "net-job", wait=None)
        job = response.json()
        assert response.status_code == 202
        assert response.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (job["kind"], job["method"], job["image"]) == ("registration", "probe", None)
        assert job["model"] == {"id": "net-job", "digest": digest_of(ONNX)}
        assert job["parameters"]["classes"] == ["cat", "dog"]
        assert job["links"]["artifacts"] == {}
        assert_problem(api.client.get("/v1/models/net-job"), 404, "unknown_model", "model")


def test_finished_registration_shows_card_and_probe(api: Api) -> None:
    response = send_registration(api, "net-done")
    job = response.json()
    assert (response.status_code, job["status"]) == (200, "succeeded")
    assert response.headers["preference-applied"] == "wait"
    assert job["result"]["model"]["id"] == "net-done"
    assert job["result"]["probe"]["gradient_agrees"] is True
    assert api.client.get("/v1/jobs", params={"kind": "registration"}).json()["items"][0]["id"] == job["id"]


def test_registered_model_is_listed_after_the_zoo(api: Api) -> None:
    card = register_model(api, "net-listed", provenance="drawn by hand")
    items = api.client.get("/v1/models").json()["items"]
    assert items[0]["id"] == sample_manifest().id
    assert card in items
    assert (card["kind"], card["digest"], card["provenance"]) == ("local", digest_of(ONNX), "drawn by hand")
    assert card["probe"] == MODEL_PROBE.model_dump(mode="json")
    assert [one["digest"] for one in card["versions"]] == [digest_of(ONNX)]
    assert card["versions"][0]["registered_at"].endswith("Z")
    [first] = items[0]["versions"]
    assert first == {"digest": sample_manifest().digest, "registered_at": None}


def test_second_file_is_a_new_version_and_both_can_be_selected(api: Api) -> None:
    register_model(api, "net-twice")
    card = register_model(api, "net-twice", other := linear_onnx(seed=5))
    assert card["digest"] == digest_of(other)
    assert [one["digest"] for one in card["versions"]] == [digest_of(other), digest_of(ONNX)]
    earlier = api.client.get("/v1/models/net-twice", params={"version": digest_of(ONNX)}).json()
    assert (earlier["digest"], earlier["versions"]) == (digest_of(ONNX), card["versions"])
    short = digest_of(ONNX).removeprefix("sha256:")[:12]
    assert api.client.get("/v1/models/net-twice", params={"version": short}).json() == earlier
    for name in (f"net-twice@{short}", f"net-twice@{digest_of(ONNX)}"):
        assert api.run_job(model=name)["model"] == {"id": "net-twice", "digest": digest_of(ONNX)}
    assert api.run_job(model="net-twice")["model"]["digest"] == digest_of(other)
    assert_problem(
        api.client.get("/v1/models/net-twice", params={"version": "0" * 12}), 404, "unknown_model", "model"
    )
    assert_problem(
        api.client.get("/v1/models/net-twice", params={"version": "x"}), 422, "invalid_parameter", "version"
    )


def test_repeated_registration_returns_the_card_and_a_changed_one_is_409(api: Api) -> None:
    card = register_model(api, "net-again")
    response = send_registration(api, "net-again", wait=None)
    assert response.status_code == 200
    assert response.headers["location"] == f"/v1/models/net-again?version={digest_of(ONNX)}"
    assert response.json() == card
    body = assert_problem(
        send_registration(api, "net-again", mean=[0.1] * 3, std=[1] * 3), 409, "model_conflict", "id"
    )
    assert "delete it first" in body["detail"]


def test_idempotency_key_makes_one_registration_job(api: Api) -> None:
    key = {"Idempotency-Key": "one"}
    first = send_registration(api, "net-key", headers=key).json()
    assert send_registration(api, "net-key", headers=key).json()["id"] == first["id"]
    assert_problem(send_registration(api, "net-other", headers=key), 422, "idempotency_mismatch")


def test_model_card_and_list_with_matching_etag_are_304(api: Api) -> None:
    register_model(api, "net-tag")
    for path in ("/v1/models/net-tag", "/v1/models"):
        tag = api.client.get(path).headers["etag"]
        unchanged = api.client.get(path, headers={"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    register_model(api, "net-tag", linear_onnx(seed=6))
    assert api.client.get("/v1/models", headers={"If-None-Match": tag}).status_code == 200


def test_labels_file_is_read_as_one_class_per_line(api: Api) -> None:
    said = {key: value for key, value in manifest("net-lines").items() if key != "classes"}

    def post(lines: bytes, **more: Any) -> httpx2.Response:
        parts = {
            "file": ("a", ONNX),
            "labels": ("l.txt", lines),
            "manifest": ("m.json", json.dumps({**said, **more})),
        }
        return api.client.post("/v1/models", files=parts, headers={"Prefer": "wait=10"})

    assert post(b"\xef\xbb\xbfcat\r\nhot dog\n").json()["result"]["model"]["classes"] == ["cat", "hot dog"]
    assert_problem(post(b"cat\xff\ndog"), 422, "invalid_parameter", "labels")
    assert_problem(post(b"cat\n\ndog"), 422, "invalid_parameter", "labels")
    assert_problem(post(b"cat\ndog", labels="cat\ndog"), 422, "invalid_parameter", "labels")
    assert_problem(post(b"cat\ndog", classes=["a", "b"]), 422, "invalid_parameter", "classes")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"id": "Big"}, "id"),
        ({"id": "../x"}, "id"),
        ({"classes": ["one"]}, "classes"),
        ({"input": {"height": 0, "width": 8}}, "input.height"),
        ({"mean": [0.5]}, "std"),
        ({"std": [1, 1, 0], "mean": [0, 0, 0]}, "std.2"),
        ({"colour": "red"}, "colour"),
        ({"architecture": "small-cnn"}, "architecture"),
    ],
)
def test_invalid_manifest_field_is_422(api: Api, said: dict[str, Any], field: str) -> None:
    said = {"model": "net-wrong", **{("model" if key == "id" else key): value for key, value in said.items()}}
    assert_problem(send_registration(api, **said), 422, "invalid_parameter", field)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"manifest": (None, "{}")}, "id"),
        ({"file": ("a", ONNX)}, "manifest"),
        ({"manifest": (None, "{"), "file": ("a", ONNX)}, "manifest"),
        ({"manifest": (None, "[]"), "file": ("a", ONNX)}, "manifest"),
        ({"manifest": (None, '{"id": 1, "id": 2}'), "file": ("a", ONNX)}, "id"),
        ({"manifest": (None, "[" * 100_000), "file": ("a", ONNX)}, "manifest"),
        ({"manifest": (None, json.dumps(REGISTRATION_FIELDS))}, "file"),
        ({"manifest": (None, json.dumps(REGISTRATION_FIELDS)), "file": (None, "text")}, "file"),
        (
            {"manifest": (None, json.dumps(REGISTRATION_FIELDS)), "file": ("a", ONNX), "weights": ("b", b"")},
            "weights",
        ),
    ],
)
def test_missing_or_wrong_registration_parts_are_422(api: Api, parts: dict[str, Any], field: str) -> None:
    assert_problem(api.client.post("/v1/models", files=parts), 422, "invalid_parameter", field)


def test_json_registration_without_file_or_allowed_address_is_refused(api: Api) -> None:
    body = assert_problem(
        api.client.post("/v1/models", json=REGISTRATION_FIELDS), 422, "invalid_parameter", "file"
    )
    assert "multipart/form-data" in body["detail"]
    said = {**examples.REMOTE, "remote": {**examples.REMOTE["remote"], "url": "https://127.0.0.1:9"}}
    assert_problem(api.client.post("/v1/models", json=said), 422, "address_refused", "url")
    said["remote"]["url"] = "https://nowhere.invalid"
    assert_problem(api.client.post("/v1/models", json=said), 422, "address_refused", "url")
    assert_problem(api.client.post("/v1/models", content=b"x"), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"a": [1.5] * 9}), "pickle"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (ONNX[:-100], "damaged"),
        (b"", "empty"),
        (b"<html>", "text"),
    ],
)
def test_file_that_is_no_model_is_refused_at_once(api: Api, data: bytes, words: str) -> None:
    body = assert_problem(
        send_registration(api, "net-hostile", data, wait=None), 422, "invalid_model", "file"
    )
    assert words in body["detail"]


def test_safetensors_registration_needs_an_architecture(api: Api) -> None:
    assert_problem(
        send_registration(api, "net-st", linear_safetensors()), 422, "invalid_parameter", "architecture"
    )
    card = register_model(api, "net-st", linear_safetensors(), architecture="small-cnn")
    assert card["weights"]["file"] == "model.safetensors"


def test_zoo_models_cannot_be_replaced_or_deleted(api: Api) -> None:
    assert_problem(send_registration(api, sample_manifest().id), 409, "model_conflict", "id")
    assert_problem(api.client.delete(f"/v1/models/{sample_manifest().id}"), 409, "model_conflict", "id")


def test_failed_registration_leaves_no_model(api: Api) -> None:
    with api.worker.with_behavior(fail):
        job = send_registration(api, "net-failed").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "non_finite_output")
    assert_problem(api.submit(wait=None, model="net-failed"), 404, "unknown_model", "model")


def test_registration_cannot_be_rerun_or_continued(api: Api) -> None:
    job = send_registration(api, "net-rerun").json()
    assert_problem(api.client.post(f"/v1/jobs/{job['id']}/rerun"), 409, "job_conflict")
    assert_problem(api.client.post(f"/v1/jobs/{job['id']}/continue", json={"n": 5}), 409, "job_conflict")


def test_model_or_one_version_of_it_is_deleted(api: Api) -> None:
    register_model(api, "net-gone")
    register_model(api, "net-gone", other := linear_onnx(seed=7))
    version = {"version": digest_of(other)}
    assert api.client.delete("/v1/models/net-gone", params=version).status_code == 204
    assert api.client.get("/v1/models/net-gone").json()["digest"] == digest_of(ONNX)
    assert_problem(api.client.delete("/v1/models/net-gone", params=version), 404, "unknown_model", "model")
    assert api.client.delete("/v1/models/net-gone").status_code == 204
    assert_problem(api.client.delete("/v1/models/net-gone"), 404, "unknown_model", "model")
    assert_problem(api.submit(wait=None, model="net-gone"), 404, "unknown_model", "model")
    assert register_model(api, "net-gone")["digest"] == digest_of(ONNX)


def test_model_used_by_waiting_jobs_is_not_deleted(api: Api) -> None:
    register_model(api, "net-busy")
    with api.worker.pause():
        job = api.submit(wait=None, model="net-busy").json()
        body = assert_problem(api.client.delete("/v1/models/net-busy"), 409, "model_in_use")
        assert body["job"] == job["id"]
        api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert api.client.delete("/v1/models/net-busy").status_code == 204
    assert api.client.get(job["links"]["self"]).json()["model"]["id"] == "net-busy"


def test_page_of_models_ends_early_by_its_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{'long ' * 20}{number}" for number in range(400)]
    for number in range(3):
        register_model(api, f"wordy-{number}", linear_onnx(classes=400, seed=number), classes=names)
    whole = api.client.get("/v1/models").json()
    monkeypatch.setattr(pagination, "PAGE_BYTES", 60_000)
    found: list[Any] = []
    pages, cursor = 0, None
    while pages == 0 or cursor:
        page = api.client.get("/v1/models", params={"cursor": cursor} if cursor else None).json()
        cursor, pages = page["cursor"], pages + 1
        found += page["items"]
        assert len(json.dumps(page)) < 2 * 60_000
    assert (found, whole["cursor"]) == (whole["items"], None)
    assert pages > 1


def test_registration_with_many_names_is_listed_read_and_deleted_like_any_other(api: Api) -> None:
    names = [f"{'long ' * 20}{number}" for number in range(400)]
    job = send_registration(api, "wordy", linear_onnx(classes=400), classes=names).json()
    assert (job["status"], job["parameters"]["classes"]) == ("succeeded", names)
    assert job["result"]["model"]["classes"] == names
    assert api.client.get(job["links"]["self"]).json() == job
    assert job in api.client.get("/v1/jobs?kind=registration").json()["items"]
    assert api.client.get("/v1/models/wordy").json()["classes"] == names
    before = api.client.get("/v1/operations").json()["storage"]["held"]
    assert api.client.delete("/v1/models/wordy").status_code == 204
    assert api.client.delete(job["links"]["self"]).status_code == 204
    assert before - api.client.get("/v1/operations").json()["storage"]["held"] > 3 * 400 * 100
