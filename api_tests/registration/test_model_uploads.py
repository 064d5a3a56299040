"""Registering models whose weights are in a second file: as two parts, or as a zip."""

from __future__ import annotations

import json
import os
from typing import Any

import onnx
import pytest

from api_tests.support.color_model import FIELDS, NAMES, color_onnx, color_zip
from api_tests.support.external_data import DATA, change_entries, write_external, zip_of
from api_tests.support.fake_service import Api, assert_problem, png
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx, linear_safetensors
from api_tests.support.wait import wait_until
from touchstone.storage.blobs import digest_of, open_blobs


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The two files of a model."""
    path = write_external(tmp_path_factory.mktemp("two"))
    return {"m.onnx": path.read_bytes(), DATA: (path.parent / DATA).read_bytes()}


def send(api: Api, model: str, **files: Any) -> Any:
    fields = {"manifest": json.dumps({**REGISTRATION_FIELDS, "id": model})}
    return api.client.post("/v1/models", files=files, data=fields, headers={"Prefer": "wait=10"})


def test_two_files_are_registered_as_one_and_a_zip_of_them_is_the_same(
    api: Api, two: dict[str, bytes]
) -> None:
    file = ("m.onnx", two["m.onnx"])
    job = send(api, "net-two", file=file, data=(DATA, two[DATA])).json()
    assert job["status"] == "succeeded"
    digest = job["model"]["digest"]
    stored = open_blobs(api.settings).get(digest)
    assert digest == digest_of(stored)
    found, right = (onnx.load_model_from_string(one).graph.initializer for one in (stored, linear_onnx()))
    assert [(one.name, one.raw_data) for one in found] == [(one.name, one.raw_data) for one in right]
    again = send(api, "net-two", file=("m.zip", zip_of(two)))
    assert again.status_code == 200
    assert again.headers["location"] == f"/v1/models/net-two?version={digest}"


def test_folder_in_the_name_of_the_data_part_is_ignored(api: Api, two: dict[str, bytes]) -> None:
    data = (rf"C:\nets\{DATA}", two[DATA])
    assert send(api, "net-folder", file=("m", two["m.onnx"]), data=data).json()["status"] == "succeeded"


def refusals(two: dict[str, bytes]) -> dict[str, tuple[dict[str, Any], str, str]]:
    """Parts of forms that are refused, the field that is named, and words of the detail."""
    graph, data = two["m.onnx"], (DATA, two[DATA])
    return {
        "data missing": ({"file": ("m", graph)}, "data", "external_data=False"),
        "other name": ({"file": ("m", graph), "data": ("upload", two[DATA])}, "data", "named 'upload'"),
        "cut short": ({"file": ("m", graph), "data": (DATA, two[DATA][:-1])}, "data", "cut short"),
        "climbing": (
            {"file": ("m", change_entries(graph, location=f"../{DATA}")), "data": data},
            "data",
            "beside the .onnx file",
        ),
        "negative": ({"file": ("m", change_entries(graph, offset="-4")), "data": data}, "data", "'-4'"),
        "needless": ({"file": ("m", linear_onnx()), "data": data}, "data", "no weight of the network"),
        "climbing zip": ({"file": ("m", zip_of({**two, "../a": b""}))}, "file", "leads elsewhere"),
        "zip and data": ({"file": ("m", zip_of(two)), "data": data}, "data", "leave this part out"),
        "safetensors": ({"file": ("m", linear_safetensors()), "data": data}, "data", "leave this part out"),
        "classes": ({"file": ("m", linear_onnx(classes=3))}, "classes", "answers 3 numbers, but 2 classes"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "data missing",
        "other name",
        "cut short",
        "climbing",
        "negative",
        "needless",
        "climbing zip",
        "zip and data",
        "safetensors",
        "classes",
    ],
)
def test_refused_files_leave_nothing_behind(api: Api, two: dict[str, bytes], name: str) -> None:
    parts, field, words = refusals(two)[name]
    before = api.client.get("/v1/jobs").json()["items"]
    body = send(api, "net-refused", **parts)
    code = "invalid_parameter" if "leave" in words else "invalid_model"
    assert words in assert_problem(body, 422, code, field)["detail"]
    assert api.client.get("/v1/jobs").json()["items"] == before
    assert list((api.settings.home / "blobs" / "incoming").iterdir()) == []


def test_data_sent_as_text_is_refused(api: Api, two: dict[str, bytes]) -> None:
    manifest = json.dumps(REGISTRATION_FIELDS)
    sent = api.client.post(
        "/v1/models", files={"file": ("m", two["m.onnx"])}, data={"manifest": manifest, "data": "x"}
    )
    assert "expected a file" in assert_problem(sent, 422, "invalid_parameter", "data")["detail"]


def send_examples(api: Api, model: str, examples: bytes, wait: int = 10) -> Any:
    return api.client.post(
        "/v1/models",
        files={"file": ("c.onnx", color_onnx()), "examples": ("e.zip", examples)},
        data={"manifest": json.dumps({**FIELDS, "id": model})},
        headers={"Prefer": f"wait={wait}"} if wait else {},
    )


def test_examples_are_held_until_the_end_of_the_registration(api: Api) -> None:
    with api.worker.pause():
        job = send_examples(api, "net-examples", color_zip(16), wait=0).json()
        assert job["phases"] == ["start", "build", "answer", "gradient check", "latency", "examples"]
        ref = api.ledger.read(job["id"]).submission.examples
        assert ref is not None
        assert ref.labels == tuple(sorted([*range(8)] * 2, key=lambda k: NAMES[k]))
        assert len(open_blobs(api.settings).get(ref.digest)) == ref.size
        assert api.ledger.retention.filter_referenced([ref.digest]) == {ref.digest}
    wait_until(lambda: api.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded")
    assert api.ledger.retention.filter_referenced([ref.digest]) == set()


def test_examples_are_tried_with_a_version_that_is_known(api: Api) -> None:
    assert send_examples(api, "net-again-examples", color_zip(8)).json()["status"] == "succeeded"
    again = send_examples(api, "net-again-examples", color_zip(16)).json()
    assert (again["kind"], again["status"]) == ("registration", "succeeded")


REFUSED_EXAMPLES: dict[str, tuple[bytes, int, str, str]] = {
    "too many": (zip_of({f"red/{i}.png": png() for i in range(101)}), 422, "invalid_parameter", "101 images"),
    "too large": (zip_of({"red/a.png": os.urandom(11 * 2**20)}), 413, "image_too_large", "10,485,760"),
    "climbing": (zip_of({"../red/a.png": png()}), 422, "invalid_parameter", "leads elsewhere"),
    "unknown label": (zip_of({"rod/a.png": png()}), 422, "unknown_label", "'red' (4)"),
    "no image": (zip_of({"red/a.txt": b"hello"}), 422, "invalid_image", "'red/a.txt'"),
    "no labels": (zip_of({"a.png": png()}), 422, "invalid_parameter", "has no label"),
    "no zip": (png(), 422, "invalid_parameter", "cannot be used"),
}


@pytest.mark.parametrize("name", REFUSED_EXAMPLES)
def test_unusable_examples_are_refused_and_leave_nothing(api: Api, name: str) -> None:
    content, status, code, words = REFUSED_EXAMPLES[name]
    before = api.client.get("/v1/jobs").json()["items"]
    body = assert_problem(send_examples(api, "net-refused", content), status, code, "examples")
    assert words in body["detail"]
    assert api.client.get("/v1/jobs").json()["items"] == before
    assert list((api.settings.home / "blobs" / "incoming").iterdir()) == []
