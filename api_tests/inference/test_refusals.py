"""What inference refuses: questions that make no sense, bodies that cannot be read, too much at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from api_tests.inference.test_protocol import FLOATS, PATH, PIXELS, ask, ask_bytes, elements, files, tensor
from api_tests.support.fake_service import Api, data_url, encoded, picture, png, problem, some_model
from service.inference import inputs as tensors
from service.submissions.bodies import Received
from touchstone.errors import CostTooHigh
from touchstone.sandbox.decoder_pool import Decoders


def changed(**changes: Any) -> Callable[[Api], httpx2.Response]:
    return lambda api: ask(api, tensor(FLOATS, **changes))


def raw(content: bytes, **headers: str) -> Callable[[Api], httpx2.Response]:
    return lambda api: api.client.post(f"{PATH}/infer", content=content, headers=headers)


def bits(shape: list[int], datatype: str, data: bytes, **more: Any) -> Callable[[Api], httpx2.Response]:
    return lambda api: ask_bytes(api, shape, datatype, data, **more)


def members(*inputs: Any, **more: Any) -> Callable[[Api], httpx2.Response]:
    return lambda api: ask(api, *inputs, **more)


def spoiled(value: float) -> bytes:
    values = FLOATS.copy()
    values[1, 0, 3, 4] = value
    return values.tobytes()


ONE, BAD = tensor(FLOATS), 422
DATA, SHAPE, SIZE = "inputs.0.data", "inputs.0.shape", "inputs.0.parameters.binary_data_size"
HUGE = [2**31, 2**31, 2**31, 2**31]
WRONG: dict[str, tuple[Callable[[Api], httpx2.Response], str]] = {
    "no inputs": (members(), "inputs"),
    "inputs twice": (raw(b'{"inputs": [], "inputs": []}'), "inputs"),
    "two inputs": (members(ONE, ONE), "inputs"),
    "another input": (changed(name="pixels"), "inputs.0.name"),
    "no shape": (members({"name": "image", "datatype": "FP32", "data": []}), SHAPE),
    "empty shape": (changed(shape=[]), SHAPE),
    "text for a shape": (changed(shape="2,1,28,28"), SHAPE),
    "half a side": (changed(shape=[2, 1, 28, 28.5]), "inputs.0.shape.3"),
    "negative": (changed(shape=[-1, 1, 28, 28]), "inputs.0.shape.0"),
    "true": (changed(shape=[True, 1, 28, 28]), "inputs.0.shape.0"),
    "no image": (changed(shape=[0, 1, 28, 28], data=[]), SHAPE),
    "nine dimensions": (changed(shape=[1] * 9), SHAPE),
    "another size": (changed(shape=[2, 1, 14, 56]), SHAPE),
    "three channels": (members(tensor(np.zeros((1, 3, 28, 28)))), SHAPE),
    "channels last": (changed(shape=[2, 28, 28, 1]), SHAPE),
    "flat images": (changed(shape=[2, 784]), SHAPE),
    "more in the shape": (changed(shape=[3, 1, 28, 28]), SHAPE),
    "less in the shape": (changed(shape=[1, 1, 28, 28]), SHAPE),
    "huge": (changed(shape=[1, *HUGE]), SHAPE),
    "huge pixels": (changed(shape=[1, *HUGE[:3]], datatype="UINT8"), SHAPE),
    "nested otherwise": (changed(data=FLOATS.reshape(2, 784).tolist()), SHAPE),
    "ragged": (changed(data=[[1, 2], [3]]), DATA),
    "lists among numbers": (changed(data=[0.5] * 1567 + [[0.5]]), DATA),
    "no data": (changed(data=None), DATA),
    "one number": (changed(data=0.5), DATA),
    "empty data": (changed(data=[]), SHAPE),
    "an object": (changed(data={"0": 1}), DATA),
    "texts": (changed(data=["0.5"] * 1568), DATA),
    "nulls": (changed(data=[None] * 1568), DATA),
    "booleans": (changed(data=[True] * 1568), DATA),
    "objects": (changed(data=[{}] * 1568), DATA),
    "too large a number": (changed(data=[10**400] + [0] * 1567), DATA),
    "infinite": (raw(json.dumps({"inputs": [ONE]}).replace("1.0]", "1e999]").encode()), DATA),
    "below the box": (changed(data=[-0.01] * 1568), DATA),
    "above the box": (changed(data=[255] * 1568), DATA),
    "FP64": (changed(datatype="FP64"), "inputs.0.datatype"),
    "fp32": (changed(datatype="fp32"), "inputs.0.datatype"),
    "a number for a datatype": (changed(datatype=3), "inputs.0.datatype"),
    "halves of pixels": (members(tensor(PIXELS / 2, "UINT8")), DATA),
    "256": (members(tensor(PIXELS + np.int64(256), "UINT8")), DATA),
    "two channels": (members(tensor(PIXELS[..., :2], "UINT8")), SHAPE),
    "small pixels": (members(tensor(PIXELS[:, :7], "UINT8")), SHAPE),
    "wide pixels": (members(tensor(PIXELS, "UINT8", shape=[1, 8, 4097, 1])), SHAPE),
    "no pixels": (members(tensor(PIXELS, "UINT8", shape=[2, 0, 0, 3])), SHAPE),
    "NaN as bytes": (bits([2, 1, 28, 28], "FP32", spoiled(np.nan)), DATA),
    "infinity as bytes": (bits([2, 1, 28, 28], "FP32", spoiled(np.inf)), DATA),
    "bytes beside data": (changed(parameters={"binary_data_size": 4}), DATA),
    "bytes too few": (bits([2, 1, 28, 28], "FP32", FLOATS.tobytes()[:-4]), SHAPE),
    "bytes too many": (bits([1, 1, 28, 28], "FP32", FLOATS.tobytes()), SHAPE),
    "bytes of a huge shape": (bits([1, 4096, 4096, 3], "UINT8", bytes(16)), SHAPE),
    "more bytes than said": (bits([2, 1, 28, 28], "FP32", FLOATS.tobytes() + bytes(4), size=6272), SIZE),
    "less bytes than said": (bits([2, 1, 28, 28], "FP32", bytes(8), size=6272), SIZE),
    "negative bytes": (bits([2, 1, 28, 28], "FP32", b"", size=-1), SIZE),
    "bytes but no header": (members({**ONE, "data": None, "parameters": {"binary_data_size": 6272}}), SIZE),
    "shared memory": (
        members({**ONE, "parameters": {"shared_memory_region": "a"}}),
        "inputs.0.parameters",
    ),
    "an element that ends early": (bits([1], "BYTES", elements(png())[:-1]), DATA),
    "a length that ends early": (bits([1], "BYTES", b"\0\0"), DATA),
    "a length that lies": (bits([1], "BYTES", b"\xff\xff\xff\xff" + png()), DATA),
    "more elements": (bits([1], "BYTES", elements(png(), png())), SHAPE),
    "less elements": (bits([3], "BYTES", elements(png(), png())), SHAPE),
    "files in a square": (bits([2, 2], "BYTES", elements(*[png()] * 4)), SHAPE),
    "an unknown output": (members(ONE, outputs=[{"name": "embedding"}]), "outputs.0.name"),
    "an output twice": (members(ONE, outputs=[{"name": "logits"}] * 2), "outputs"),
    "eleven of ten classes": (
        members(ONE, outputs=[{"name": "logits", "parameters": {"classification": 11}}]),
        "outputs",
    ),
    "yes for true": (
        members(ONE, outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]),
        "outputs.0.parameters.binary_data",
    ),
    "a number for an id": (members(ONE, id=7), "id"),
    "a list for parameters": (members(ONE, parameters=[]), "parameters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_question_that_makes_no_sense(api: Api, name: str) -> None:
    send, field = WRONG[name]
    told = problem(send(api), 422, "invalid_parameter", field)
    assert told["error"] == told["detail"]
    assert "instance" in told


UNREADABLE = {
    "empty": raw(b""),
    "text": raw(b"hello"),
    "a list": raw(b"[]"),
    "NaN": raw(json.dumps({"inputs": [tensor(FLOATS, data=[float("nan")])]}).encode()),
    "deep": raw(b"[" * 100_000),
    "not UTF-8": raw(b'{"id": "\xff"}'),
    "header of text": bits([1], "BYTES", b"", length="many"),
    "header beyond the end": bits([1], "BYTES", b"", length=10_000),
    "header of nothing": bits([1], "BYTES", b"", length=0),
    "negative header": bits([1], "BYTES", b"", length=-1),
    "header of very many digits": bits([1], "BYTES", b"", length="9" * 5000),
    "header of another digit": lambda api: api.client.post(
        f"{PATH}/infer", content=b"{}", headers={tensors.HEADER_LENGTH.encode(): b"\xb2"}
    ),
    "header cuts": bits([1], "BYTES", b"", length=20),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_body_that_cannot_be_read(api: Api, name: str) -> None:
    told = problem(UNREADABLE[name](api), 400, "invalid_body")
    assert told["error"] == told["detail"]


def test_other_media_types_are_refused(api: Api) -> None:
    body = json.dumps({"inputs": [ONE]}).encode()
    problem(raw(body, **{"Content-Type": "text/plain"})(api), 415, "unsupported_media_type")
    problem(raw(body, **{"Content-Encoding": "gzip"})(api), 415, "unsupported_media_type")
    assert raw(body, **{"Content-Type": "application/json"})(api).status_code == 200


def test_more_images_than_one_request_may_have(api: Api) -> None:
    rows = api.settings.inference_rows + 1
    for response in (
        ask(api, tensor(FLOATS, shape=[10_000, 1, 28, 28])),
        ask_bytes(api, [rows, 8, 8, 1], "UINT8", bytes(rows * 64)),
        ask_bytes(api, [2**31, 1, 28, 28], "FP32", b""),
    ):
        told = problem(response, 422, "cost_too_high")
        assert told["limit"] == api.settings.inference_rows
    assert ask_bytes(api, [rows - 1, 8, 8, 1], "UINT8", bytes((rows - 1) * 64)).status_code == 200


def test_no_more_images_than_a_job_may_cost(api: Api) -> None:
    settings = api.settings.model_copy(update={"cost_limit": 1})
    received = Received("", json.dumps({"inputs": [ONE]}).encode())
    with pytest.raises(CostTooHigh):
        tensors.read(received, None, some_model().input, settings, Decoders(0))


def test_a_body_that_is_too_large(api: Api) -> None:
    told = problem(
        ask_bytes(api, [24, 3, 224, 224], "FP32", bytes(24 * 3 * 224 * 224 * 4)), 413, "body_too_large"
    )
    assert told["error"] == told["detail"]


def test_files_that_are_no_images_or_too_many_pixels(api: Api) -> None:
    told = problem(
        ask(api, files(data_url(png()), data_url(b"text"))), 422, "invalid_image", "inputs.0.data.1"
    )
    assert told["detail"].startswith("inputs.0.data.1: the file is no PNG")
    problem(ask(api, files("*")), 422, "invalid_image", "inputs.0.data.0")
    problem(ask(api, files(7)), 422, "invalid_parameter", "inputs.0.data.0")
    large = data_url(encoded(picture().resize((4096, 4000))))
    problem(ask(api, files(large, large)), 413, "image_too_large", "inputs.0.data")
