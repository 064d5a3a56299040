"""What networks take: open sizes, in which the manifest's are put."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper
from torch import Generator, Tensor

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.errors import InvalidModel
from touchstone.models.loader import build_module
from touchstone.registration.request import Registration, describe_model

Shape = tuple[int | str, ...]
IMAGE: dict[str, Any] = {"channels": 3, "height": 6, "width": 6}


def images(rows: int = 2) -> Tensor:
    return torch.rand(rows, 3, 6, 6, generator=Generator().manual_seed(0))


def load(model: ModelProto, *, image: dict[str, Any] | None = None, **fields: Any) -> torch.nn.Module:
    """The network as a worker loads it."""
    request = {"id": "net", "classes": list("abcde"), "input": {**IMAGE, **(image or {})}, **fields}
    data = model.SerializeToString()
    return build_module(describe_model(Registration.parse(request), data, limit=2**29), data)


def run_onnxruntime(model: ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def conv_net(shape: Shape, *before: onnx.NodeProto) -> ModelProto:
    """A convolution whose output's shape is computed from that of the image."""
    rest, weights = linear_head("mean", 4)
    weights["w"] = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype("f4")
    image = before[-1].output[0] if before else "x"
    nodes = [
        helper.make_node("Conv", [image, "w"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["mean"]),
    ]
    return build_onnx_model(*before, *nodes, *rest, weights=weights, shape=shape)


def to_channels_first(name: str) -> onnx.NodeProto:
    return helper.make_node("Transpose", [name], ["first"], perm=[0, 3, 1, 2])


@pytest.mark.parametrize(
    "shape", [("n", "c", "h", "w"), ("n", "c", 6, 6), ("n", 3, "h", 6), (1, "c", "h", "w")]
)
def test_sizes_left_open_are_those_of_the_manifest(shape: Shape) -> None:
    model, x = conv_net(shape), images(1)
    torch.testing.assert_close(load(model)(x), run_onnxruntime(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [("n", "h", "w", "c"), ("n", 6, 6, "c"), ("n", "h", "w", 3)])
def test_open_sizes_of_a_channels_last_network_are_those_of_the_manifest(shape: Shape) -> None:
    model, x = conv_net(shape, to_channels_first("x")), images()
    expected = run_onnxruntime(model, x.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(load(model, image={"layout": "nhwc"})(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "image", "field"),
    [
        (("n", 1, "h", "w"), {}, "input.channels"),
        (("n", "c", 7, "w"), {}, "input.height"),
        (("n", "c", "h", 5), {}, "input.width"),
        (("n", "c", 6, 6), {"layout": "nhwc"}, "input.layout"),
        (("n", "h", "w", 3), {}, "input.layout"),
        (("n", 6, 6, "c"), {}, "input.layout"),
        (("n", 4, 6, 6), {}, "input.channels"),
    ],
)
def test_sizes_that_contradict_the_manifest_are_refused(
    shape: Shape, image: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidModel) as caught:
        load(conv_net(shape), image=image)
    assert caught.value.field == field
