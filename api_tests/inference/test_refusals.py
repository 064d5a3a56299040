"""What inference refuses: questions that make no sense, bodies that cannot be read, too much at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from api_tests.inference.test_protocol import (
    FLOATS,
    PATH,
    PIXELS,
    files,
    length_prefixed,
    post_binary_inference,
    post_inference,
    tensor,
)
from api_tests.support.fake_service import (
    Api,
    assert_problem,
    data_url,
    encode_image,
    gradient_image,
    png,
    sample_manifest,
)
from service.inference import inputs as inference_inputs
from service.submissions.bodies import RawBody
from touchstone.errors import CostTooHigh
from touchstone.ledger.records import LOCAL
from touchstone.sandbox.decoder_pool import DecoderPool


def send_changed_tensor(**changes: Any) -> Callable[[Api], httpx2.Response]:
    return lambda api: post_inference(api, tensor(FLOATS, **changes))


def send_raw(content: bytes, **headers: str) -> Callable[[Api], httpx2.Response]:
    return lambda api: api.client.post(f"{PATH}/infer", content=content, headers=headers)


def send_binary(
    shape: list[int], datatype: str, data: bytes, **more: Any
) -> Callable[[Api], httpx2.Response]:
    return lambda api: post_binary_inference(api, shape, datatype, data, **more)


def send_inputs(*inputs: Any, **more: Any) -> Callable[[Api], httpx2.Response]:
    return lambda api: post_inference(api, *inputs, **more)


def floats_with(value: float) -> bytes:
    values = FLOATS.copy()
    values[1, 0, 3, 4] = value
    return values.tobytes()


ONE = tensor(FLOATS)
DATA, SHAPE, SIZE = "inputs.0.data", "inputs.0.shape", "inputs.0.parameters.binary_data_size"
HUGE_SHAPE = [2**31, 2**31, 2**31, 2**31]
INVALID_REQUESTS: dict[str, tuple[Callable[[Api], httpx2.Response], str]] = {
    "no inputs": (send_inputs(), "inputs"),
    "inputs twice": (send_raw(b'{"inputs": [], "inputs": []}'), "inputs"),
    "two inputs": (send_inputs(ONE, ONE), "inputs"),
    "another input": (send_changed_tensor(name="pixels"), "inputs.0.name"),
    "no shape": (send_inputs({"name": "image", "datatype": "FP32", "data": []}), SHAPE),
    "empty shape": (send_changed_tensor(shape=[]), SHAPE),
    "text for a shape": (send_changed_tensor(shape="2,1,28,28"), SHAPE),
    "half a side": (send_changed_tensor(shape=[2, 1, 28, 28.5]), "inputs.0.shape.3"),
    "negative": (send_changed_tensor(shape=[-1, 1, 28, 28]), "inputs.0.shape.0"),
    "true": (send_changed_tensor(shape=[True, 1, 28, 28]), "inputs.0.shape.0"),
    "no image": (send_changed_tensor(shape=[0, 1, 28, 28], data=[]), SHAPE),
    "nine dimensions": (send_changed_tensor(shape=[1] * 9), SHAPE),
    "another size": (send_changed_tensor(shape=[2, 1, 14, 56]), SHAPE),
    "three channels": (send_inputs(tensor(np.zeros((1, 3, 28, 28)))), SHAPE),
    "channels last": (send_changed_tensor(shape=[2, 28, 28, 1]), SHAPE),
    "flat images": (send_changed_tensor(shape=[2, 784]), SHAPE),
    "more in the shape": (send_changed_tensor(shape=[3, 1, 28, 28]), SHAPE),
    "less in the shape": (send_changed_tensor(shape=[1, 1, 28, 28]), SHAPE),
    "huge": (send_changed_tensor(shape=[1, *HUGE_SHAPE]), SHAPE),
    "huge pixels": (send_changed_tensor(shape=[1, *HUGE_SHAPE[:3]], datatype="UINT8"), SHAPE),
    "nested otherwise": (send_changed_tensor(data=FLOATS.reshape(2, 784).tolist()), SHAPE),
    "ragged": (send_changed_tensor(data=[[1, 2], [3]]), DATA),
    "lists among numbers": (send_changed_tensor(data=[0.5] * 1567 + [[0.5]]), DATA),
    "no data": (send_changed_tensor(data=None), DATA),
    "one number": (send_changed_tensor(data=0.5), DATA),
    "empty data": (send_changed_tensor(data=[]), SHAPE),
    "an object": (send_changed_tensor(data={"0": 1}), DATA),
    "texts": (send_changed_tensor(data=["0.5"] * 1568), DATA),
    "nulls": (send_changed_tensor(data=[None] * 1568), DATA),
    "booleans": (send_changed_tensor(data=[True] * 1568), DATA),
    "objects": (send_changed_tensor(data=[{}] * 1568), DATA),
    "too large a number": (send_changed_tensor(data=[10**400] + [0] * 1567), DATA),
    "infinite": (send_raw(json.dumps({"inputs": [ONE]}).replace("1.0]", "1e999]").encode()), DATA),
    "below the box": (send_changed_tensor(data=[-0.01] * 1568), DATA),
    "above the box": (send_changed_tensor(data=[255] * 1568), DATA),
    "FP64": (send_changed_tensor(datatype="FP64"), "inputs.0.datatype"),
    "fp32": (send_changed_tensor(datatype="fp32"), "inputs.0.datatype"),
    "a number for a datatype": (send_changed_tensor(datatype=3), "inputs.0.datatype"),
    "halves of pixels": (send_inputs(tensor(PIXELS / 2, "UINT8")), DATA),
    "256": (send_inputs(tensor(PIXELS + np.int64(256), "UINT8")), DATA),
    "two channels": (send_inputs(tensor(PIXELS[..., :2], "UINT8")), SHAPE),
    "small pixels": (send_inputs(tensor(PIXELS[:, :7], "UINT8")), SHAPE),
    "wide pixels": (send_inputs(tensor(PIXELS, "UINT8", shape=[1, 8, 4097, 1])), SHAPE),
    "no pixels": (send_inputs(tensor(PIXELS, "UINT8", shape=[2, 0, 0, 3])), SHAPE),
    "NaN as bytes": (send_binary([2, 1, 28, 28], "FP32", floats_with(np.nan)), DATA),
    "infinity as bytes": (send_binary([2, 1, 28, 28], "FP32", floats_with(np.inf)), DATA),
    "bytes beside data": (send_changed_tensor(parameters={"binary_data_size": 4}), DATA),
    "bytes too few": (send_binary([2, 1, 28, 28], "FP32", FLOATS.tobytes()[:-4]), SHAPE),
    "bytes too many": (send_binary([1, 1, 28, 28], "FP32", FLOATS.tobytes()), SHAPE),
    "bytes of a huge shape": (send_binary([1, 4096, 4096, 3], "UINT8", bytes(16)), SHAPE),
    "more bytes than said": (
        send_binary([2, 1, 28, 28], "FP32", FLOATS.tobytes() + bytes(4), size=6272),
        SIZE,
    ),
    "less bytes than said": (send_binary([2, 1, 28, 28], "FP32", bytes(8), size=6272), SIZE),
    "negative bytes": (send_binary([2, 1, 28, 28], "FP32", b"", size=-1), SIZE),
    "bytes but no header": (
        send_inputs({**ONE, "data": None, "parameters": {"binary_data_size": 6272}}),
        SIZE,
    ),
    "shared memory": (
        send_inputs({**ONE, "parameters": {"shared_memory_region": "a"}}),
        "inputs.0.parameters",
    ),
    "an element that ends early": (send_binary([1], "BYTES", length_prefixed(png())[:-1]), DATA),
    "a length that ends early": (send_binary([1], "BYTES", b"\0\0"), DATA),
    "a length that lies": (send_binary([1], "BYTES", b"\xff\xff\xff\xff" + png()), DATA),
    "more elements": (send_binary([1], "BYTES", length_prefixed(png(), png())), SHAPE),
    "less elements": (send_binary([3], "BYTES", length_prefixed(png(), png())), SHAPE),
    "files in a square": (send_binary([2, 2], "BYTES", length_prefixed(*[png()] * 4)), SHAPE),
    "an unknown output": (send_inputs(ONE, outputs=[{"name": "embedding"}]), "outputs.0.name"),
    "an output twice": (send_inputs(ONE, outputs=[{"name": "logits"}] * 2), "outputs"),
    "eleven of ten classes": (
        send_inputs(ONE, outputs=[{"name": "logits", "parameters": {"classification": 11}}]),
        "outputs",
    ),
    "yes for true": (
        send_inputs(ONE, outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]),
        "outputs.0.parameters.binary_data",
    ),
    "a number for an id": (send_inputs(ONE, id=7), "id"),
    "a list for parameters": (send_inputs(ONE, parameters=[]), "parameters"),
}


@pytest.mark.parametrize("name", INVALID_REQUESTS)
def test_invalid_inference_request_names_the_field(api: Api, name: str) -> None:
    send, field = INVALID_REQUESTS[name]
    told = assert_problem(send(api), 422, "invalid_parameter", field)
    assert told["error"] == told["detail"]
    assert "instance" in told


UNREADABLE_BODIES = {
    "empty": send_raw(b""),
    "text": send_raw(b"hello"),
    "a list": send_raw(b"[]"),
    "NaN": send_raw(json.dumps({"inputs": [tensor(FLOATS, data=[float("nan")])]}).encode()),
    "deep": send_raw(b"[" * 100_000),
    "not UTF-8": send_raw(b'{"id": "\xff"}'),
    "header of text": send_binary([1], "BYTES", b"", length="many"),
    "header beyond the end": send_binary([1], "BYTES", b"", length=10_000),
    "header of nothing": send_binary([1], "BYTES", b"", length=0),
    "negative header": send_binary([1], "BYTES", b"", length=-1),
    "header of very many digits": send_binary([1], "BYTES", b"", length="9" * 5000),
    "header of another digit": lambda api: api.client.post(
        f"{PATH}/infer", content=b"{}", headers={inference_inputs.HEADER_LENGTH.encode(): b"\xb2"}
    ),
    "header cuts": send_binary([1], "BYTES", b"", length=20),
}


@pytest.mark.parametrize("name", UNREADABLE_BODIES)
def test_unreadable_inference_body_answers_400(api: Api, name: str) -> None:
    told = assert_problem(UNREADABLE_BODIES[name](api), 400, "invalid_body")
    assert told["error"] == told["detail"]


def test_unsupported_media_types_and_encodings_answer_415(api: Api) -> None:
    body = json.dumps({"inputs": [ONE]}).encode()
    assert_problem(send_raw(body, **{"Content-Type": "text/plain"})(api), 415, "unsupported_media_type")
    assert_problem(send_raw(body, **{"Content-Encoding": "gzip"})(api), 415, "unsupported_media_type")
    assert send_raw(body, **{"Content-Type": "application/json"})(api).status_code == 200


def test_more_images_than_a_request_may_have_are_refused(api: Api) -> None:
    rows = api.settings.inference_rows + 1
    for response in (
        post_inference(api, tensor(FLOATS, shape=[10_000, 1, 28, 28])),
        post_binary_inference(api, [rows, 8, 8, 1], "UINT8", bytes(rows * 64)),
        post_binary_inference(api, [2**31, 1, 28, 28], "FP32", b""),
    ):
        told = assert_problem(response, 422, "cost_too_high")
        assert told["limit"] == api.settings.inference_rows
    assert post_binary_inference(api, [rows - 1, 8, 8, 1], "UINT8", bytes((rows - 1) * 64)).status_code == 200


def test_images_beyond_the_cost_limit_are_refused(api: Api) -> None:
    settings = api.settings.model_copy(update={"cost_limit": 1})
    received = RawBody("", json.dumps({"inputs": [ONE]}).encode())
    with pytest.raises(CostTooHigh):
        inference_inputs.parse_request(
            received, None, sample_manifest().input, settings, DecoderPool(0).of(LOCAL)
        )


def test_too_large_inference_body_answers_413(api: Api) -> None:
    told = assert_problem(
        post_binary_inference(api, [24, 3, 224, 224], "FP32", bytes(24 * 3 * 224 * 224 * 4)),
        413,
        "body_too_large",
    )
    assert told["error"] == told["detail"]


def test_invalid_and_too_large_image_files_are_refused(api: Api) -> None:
    told = assert_problem(
        post_inference(api, files(data_url(png()), data_url(b"text"))),
        422,
        "invalid_image",
        "inputs.0.data.1",
    )
    assert told["detail"].startswith("inputs.0.data.1: the file is no PNG")
    assert_problem(post_inference(api, files("*")), 422, "invalid_image", "inputs.0.data.0")
    assert_problem(post_inference(api, files(7)), 422, "invalid_parameter", "inputs.0.data.0")
    large = data_url(encode_image(gradient_image().resize((4096, 4000))))
    assert_problem(post_inference(api, files(large, large)), 413, "image_too_large", "inputs.0.data")
