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


def fixed_batch_net(batch: int, *, end: str = "") -> ModelProto:
    """A network that can take only so many images: a shape in it says so."""
    nodes, weights = linear_head("rows", 108)
    weights["shape"] = np.array([batch, -1])
    nodes.insert(0, helper.make_node("Reshape", ["x", "shape"], ["rows"]))
    nodes[-1].output[0] = "logits" if end else "y"
    nodes += [helper.make_node(end, ["logits"], ["y"], axis=1)] if end else []
    return build_onnx_model(*nodes, weights=weights, shape=(batch, 3, 6, 6), output=(batch, 5))


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_network_of_a_fixed_batch_answers_any_number_of_images(batch: int, rows: int) -> None:
    model, x = fixed_batch_net(batch), images(rows)
    filled = torch.cat([x, torch.zeros(-rows % batch, 3, 6, 6)])
    expected = torch.cat([run_onnxruntime(model, part) for part in filled.split(batch)])[:rows]
    torch.testing.assert_close(load(model)(x), expected, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_padded_batch_is_that_of_each_row() -> None:
    model, x = fixed_batch_net(2, end="LogSoftmax"), images(3).double().requires_grad_()
    net = load(model).double()
    assert torch.autograd.gradcheck(net, x)
    alone = [torch.autograd.grad(net(row).sum(), x, retain_graph=True)[0] for row in x.split(1)]
    together = torch.autograd.grad(net(x).sum(), x)[0]
    torch.testing.assert_close(sum(alone), together)


def test_softmax_of_a_fixed_batch_is_removed() -> None:
    model, plain = fixed_batch_net(2, end="Softmax"), fixed_batch_net(2)
    torch.testing.assert_close(load(model)(images()), run_onnxruntime(plain, images()), rtol=1e-4, atol=1e-5)


def test_network_that_answers_one_row_for_a_batch_is_refused() -> None:
    nodes, weights = linear_head("mean", 108)
    weights["axis"] = np.array([0])
    model = build_onnx_model(
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"]), *nodes, weights=weights, shape=(2, 3, 6, 6)
    )
    with pytest.raises(InvalidModel, match="batch of 2"):
        load(model)
