"""The Open Inference Protocol with a pretended worker: metadata, each way of sending images, each form of an
answer, and what is told of requests that make no sense.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import httpx2
import numpy as np
import pytest

from api_tests.support.fake_service import (
    Api,
    FakeJob,
    assert_problem,
    data_url,
    encode_image,
    fail,
    gradient_image,
    png,
    succeed,
)
from service.inference import router
from touchstone.errors import LedgerUnavailable, UnknownArtifact
from touchstone.methods.inference import unpack
from touchstone.models import zoo
from touchstone.storage.blobs import open_blobs

MANIFEST = zoo.find_manifest("fashion-mnist-cnn")
PATH = f"/v2/models/{MANIFEST.id}"
HEADER = "Inference-Header-Content-Length"
FLOATS = np.linspace(0, 1, 2 * 28 * 28, dtype=np.float32).reshape(2, 1, 28, 28)
PIXELS = np.arange(2 * 9 * 8 * 3, dtype=np.uint8).reshape(2, 9, 8, 3)


def tensor(values: np.ndarray, datatype: str = "FP32", **changes: Any) -> dict[str, Any]:
    """An input with its numbers in JSON."""
    shown = {"name": "image", "shape": list(values.shape), "datatype": datatype}
    return {**shown, "data": values.ravel().tolist(), **changes}


def files(*data: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": list(data), **changes}


def post_inference(api: Api, *inputs: Any, path: str = PATH, **members: Any) -> httpx2.Response:
    return api.client.post(f"{path}/infer", json={"inputs": list(inputs), **members})


def post_binary_inference(
    api: Api,
    shape: list[int],
    datatype: str,
    data: bytes,
    *,
    length: int | str | None = None,
    size: int | None = None,
    **members: Any,
) -> httpx2.Response:
    """A question whose input is bytes behind the JSON; without a media type, as Triton's client sends it."""
    parameters = {"binary_data_size": len(data) if size is None else size}
    one = {"name": "image", "shape": shape, "datatype": datatype, "parameters": parameters}
    head = json.dumps({"inputs": [one], **members}).encode()
    headers = {HEADER: str(len(head) if length is None else length)}
    return api.client.post(f"{PATH}/infer", content=head + data, headers=headers)


def length_prefixed(*data: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in data)


def outputs(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["outputs"]}


class RecordingBehavior:
    """What the worker was given."""

    def __init__(self) -> None:
        self.works: list[FakeJob] = []
        self.stacks: list[np.ndarray] = []

    def __call__(self, work: FakeJob) -> None:
        self.works.append(work)
        self.stacks = unpack(work.blobs.get(work.job.submission.source))
        succeed(work)

    def equals(self, *expected: np.ndarray) -> bool:
        return [one.dtype for one in self.stacks] == [one.dtype for one in expected] and all(
            np.array_equal(one, other) for one, other in zip(self.stacks, expected, strict=True)
        )


@pytest.fixture
def recording(api: Api) -> Iterator[RecordingBehavior]:
    recording = RecordingBehavior()
    with api.worker.with_behavior(recording):
        yield recording


def test_server_metadata_names_the_server_and_its_extensions(api: Api) -> None:
    told = api.client.get("/v2").json()
    assert told["name"] == "touchstone"
    assert told["extensions"] == ["binary_tensor_data", "classification"]
    assert api.client.get("/v2/health/live").json() == {"live": True}


def test_server_and_model_are_ready_once_a_worker_is_alive(api: Api) -> None:
    for worker in api.ledger.workers.alive():
        api.ledger.workers.remove(worker.id)
    for path in ("/v2/health/ready", f"{PATH}/ready", f"{PATH}/versions/{MANIFEST.digest}/ready"):
        told = assert_problem(api.client.get(path), 503, "not_ready")
        assert told["error"] == told["detail"]
    api.ledger.workers.heartbeat("pretender", {"running": 0})
    assert api.client.get("/v2/health/ready").json() == {"ready": True}
    assert api.client.get(f"{PATH}/ready").json() == {"name": MANIFEST.id, "ready": True}
    api.ledger.workers.remove("pretender")


@pytest.mark.parametrize("card", zoo.manifests().values(), ids=lambda card: card.id)
def test_model_metadata_describes_its_tensors(api: Api, card: Any) -> None:
    told = api.client.get(f"/v2/models/{card.id}").json()
    assert (told["name"], told["versions"]) == (card.id, [card.digest])
    (image,) = told["inputs"]
    size = [-1, card.input.channels, card.input.height, card.input.width]
    assert (image["name"], image["datatype"], image["shape"]) == ("image", "FP32", size)
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["outputs"]] == [
        (name, "FP32", [-1, len(card.classes)]) for name in ("logits", "probabilities")
    ]


@pytest.mark.parametrize("version", [MANIFEST.digest, MANIFEST.digest.removeprefix("sha256:")[:12]])
def test_model_version_is_named_by_its_digest(api: Api, version: str) -> None:
    path = f"{PATH}/versions/{version}"
    assert api.client.get(path).json() == api.client.get(PATH).json()
    assert post_inference(api, tensor(FLOATS), path=path).json()["model_version"] == MANIFEST.digest


@pytest.mark.parametrize("path", ["/v2/models/nothing", f"{PATH}/versions/1", f"{PATH}/versions/{'0' * 64}"])
def test_unknown_models_and_versions_answer_404(api: Api, path: str) -> None:
    for response in (
        api.client.get(path),
        api.client.get(f"{path}/ready"),
        post_inference(api, tensor(FLOATS), path=path),
    ):
        told = assert_problem(response, 404, "unknown_model", "model")
        assert told["error"] == told["detail"]


def test_only_problems_under_v2_have_an_error_member(api: Api) -> None:
    assert "error" not in api.client.get("/v1/models/nothing").json()
    assert "error" not in api.client.get("/v20").json()
    assert "error" in api.client.get("/v2/nothing").json()


def test_json_numbers_are_accepted_flat_or_nested(api: Api, recording: RecordingBehavior) -> None:
    assert set(outputs(post_inference(api, tensor(FLOATS)))) == {"logits", "probabilities"}
    assert recording.equals(FLOATS)
    post_inference(api, tensor(FLOATS, data=FLOATS.tolist()))
    assert recording.equals(FLOATS)
    post_inference(api, tensor(np.zeros((1, 1, 28, 28), int)))
    assert recording.equals(np.zeros((1, 1, 28, 28), np.float32))
    post_inference(api, tensor(PIXELS, "UINT8"))
    assert recording.equals(PIXELS)
    post_inference(api, tensor(PIXELS[..., :1], "UINT8", data=PIXELS[..., :1].tolist()))
    assert recording.equals(PIXELS[..., :1])


def test_binary_numbers_are_accepted(api: Api, recording: RecordingBehavior) -> None:
    outputs(post_binary_inference(api, [2, 1, 28, 28], "FP32", FLOATS.tobytes()))
    assert recording.equals(FLOATS)
    outputs(post_binary_inference(api, [2, 9, 8, 3], "UINT8", PIXELS.tobytes()))
    assert recording.equals(PIXELS)


def test_image_files_of_any_size_are_accepted(api: Api, recording: RecordingBehavior) -> None:
    one, two = np.asarray(gradient_image()), np.asarray(gradient_image(12, 10, "L"))[..., None]
    outputs(
        post_inference(
            api, files(data_url(png()), base64.b64encode(png()).decode(), data_url(png(12, 10, "L")))
        )
    )
    assert recording.equals(np.stack([one, one]), two[None])
    webp = encode_image(gradient_image(), "WEBP", lossless=True)
    outputs(post_binary_inference(api, [2], "BYTES", length_prefixed(webp, png())))
    assert recording.equals(np.stack([one, one]))
    outputs(post_binary_inference(api, [1, 1], "BYTES", length_prefixed(png())))
    assert recording.equals(one[None])


def test_response_names_the_model_and_the_request_id(api: Api) -> None:
    told = post_inference(api, tensor(FLOATS), id="7", parameters={"priority": 1}).json()
    assert (told["model_name"], told["model_version"], told["id"]) == (MANIFEST.id, MANIFEST.digest, "7")
    assert "id" not in post_inference(api, tensor(FLOATS)).json()


def test_requested_outputs_are_returned_in_the_order_asked_for(api: Api) -> None:
    told = post_inference(
        api, tensor(FLOATS), outputs=[{"name": "probabilities"}, {"name": "logits"}]
    ).json()["outputs"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in told] == [
        ("probabilities", "FP32", [2, 10]),
        ("logits", "FP32", [2, 10]),
    ]
    logits = np.array(told[1]["data"]).reshape(2, 10)
    assert np.array_equal(logits, np.add.outer([0, 1], np.arange(10)))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.array(told[0]["data"]).reshape(2, 10) == pytest.approx(shares, abs=1e-6)
    assert list(outputs(post_inference(api, tensor(FLOATS), outputs=[{"name": "logits"}]))) == ["logits"]
    assert list(outputs(post_inference(api, tensor(FLOATS), outputs=[]))) == ["logits", "probabilities"]


def test_requested_output_is_returned_as_bytes(api: Api) -> None:
    wanted = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    response = post_inference(api, tensor(FLOATS), outputs=wanted)
    length = int(response.headers[HEADER])
    assert response.headers["content-type"] == "application/octet-stream"
    first, second = json.loads(response.content[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 80}
    assert "data" not in first
    assert len(second["data"]) == 20
    logits = np.frombuffer(response.content[length:], "<f4").reshape(2, 10)
    assert np.array_equal(logits, np.add.outer([0, 1], np.arange(10)))


def test_binary_data_output_applies_unless_an_output_overrides_it(api: Api) -> None:
    wanted = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "probabilities"}]
    response = post_inference(api, tensor(FLOATS), outputs=wanted, parameters={"binary_data_output": True})
    first, second = json.loads(response.content[: int(response.headers[HEADER])])["outputs"]
    assert len(first["data"]) == 20
    assert second["parameters"] == {"binary_data_size": 80}


def test_classification_output_lists_the_top_classes_by_name(api: Api) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    told = outputs(post_inference(api, tensor(FLOATS), outputs=wanted))["logits"]
    last, before = MANIFEST.classes[9], MANIFEST.classes[8]
    assert (told["datatype"], told["shape"]) == ("BYTES", [2, 2])
    best = [f"9.000000:9:{last}", f"8.000000:8:{before}", f"10.000000:9:{last}", f"9.000000:8:{before}"]
    assert told["data"] == best
    wanted[0]["parameters"]["binary_data"] = True
    response = post_inference(api, tensor(FLOATS), outputs=wanted)
    tail = response.content[int(response.headers[HEADER]) :]
    assert tail == length_prefixed(*map(str.encode, told["data"]))


def test_inference_is_a_job_that_is_deleted_once_answered(api: Api, recording: RecordingBehavior) -> None:
    response = post_inference(api, tensor(FLOATS), parameters={"execution": "deterministic"})
    assert response.status_code == 200
    (work,) = recording.works
    asked = work.job.submission
    assert (asked.kind, asked.method, asked.execution) == ("inference", "infer", "deterministic")
    assert asked.parameters == {"datatype": "FP32", "rows": 2}
    assert api.client.get(f"/v1/jobs/{work.job.id}").status_code == 404
    assert api.client.get("/v1/jobs", params={"kind": "inference"}).json()["items"] == []
    with pytest.raises(UnknownArtifact):
        open_blobs(api.settings).get(asked.source)


def test_equal_requests_store_separate_input_files(api: Api, recording: RecordingBehavior) -> None:
    for _ in range(2):
        post_inference(api, tensor(FLOATS))
    first, second = (work.job.submission.source for work in recording.works)
    assert first != second


def test_failed_inference_is_reported_and_stays_listed(api: Api) -> None:
    with api.worker.with_behavior(fail):
        told = assert_problem(post_inference(api, tensor(FLOATS)), 422, "non_finite_output")
    assert told["error"] == told["detail"]
    shown = api.client.get(told["job"]).json()
    assert (shown["kind"], shown["status"], shown["image"]) == ("inference", "failed", None)
    assert api.client.post(f"{told['job']}/rerun").status_code == 409
    assert api.client.delete(told["job"]).status_code == 204


def test_inference_without_a_free_worker_times_out_and_is_canceled(api: Api) -> None:
    with api.worker.pause(), patch.object(router, "MAX_WAIT_SECONDS", 1):
        told = assert_problem(post_inference(api, tensor(FLOATS)), 503, "not_ready")
        (left,) = api.client.get("/v1/jobs", params={"kind": "inference"}).json()["items"]
    assert "1 seconds" in told["detail"]
    assert left["status"] == "canceled"
    api.client.delete(left["links"]["self"])


def test_unreachable_ledger_answers_503(api: Api) -> None:
    with patch.object(type(api.ledger), "accept", side_effect=LedgerUnavailable("out of reach")):
        told = assert_problem(post_inference(api, tensor(FLOATS)), 503, "ledger_unavailable")
    assert told["error"] == "out of reach"
