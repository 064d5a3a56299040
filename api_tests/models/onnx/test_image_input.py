"""What networks take: sizes left open, fixed batches, pixels of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
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


def whole_pixels_net(*before: onnx.NodeProto, shape: Shape = ("n", 3, 6, 6)) -> ModelProto:
    """Pixels 0 to 255, cast and normalized inside; `before` ends in "ready"."""
    model = conv_net(shape, *before, helper.make_node("Identity", ["normal"], ["image"]))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    middle = np.array([120, 110, 100], "f4").reshape(3, 1, 1)
    inside = [
        helper.make_node("Div", ["ready", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "middle"], ["normal"]),
    ]
    for position, node in enumerate(inside, len(before)):
        model.graph.node.insert(position, node)
    for name, value in {"white": np.float32(255), "middle": middle / 255, "bgr": np.array([2, 1, 0])}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def cast(name: str, result: str, to: int = TensorProto.FLOAT) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], to=to)


TO_FLOAT: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "a cast": ([cast("x", "ready")], {}),
    "channels last, then a cast": ([to_channels_first("x"), cast("first", "ready")], {"layout": "nhwc"}),
    "a cast, then channels first": (
        [cast("x", "floats"), helper.make_node("Transpose", ["floats"], ["ready"], perm=[0, 3, 1, 2])],
        {"layout": "nhwc"},
    ),
    "two casts with the channels exchanged": (
        [
            cast("x", "wide", TensorProto.INT32),
            helper.make_node("Gather", ["wide", "bgr"], ["other"], axis=1),
            cast("other", "ready"),
        ],
        {},
    ),
}


@pytest.mark.parametrize("name", TO_FLOAT)
@pytest.mark.parametrize("fields", [{}, {"range": [0, 255]}, {"mean": [0, 0, 0], "std": [1 / 255] * 3}])
def test_network_of_whole_pixels_answers_like_onnxruntime(name: str, fields: dict[str, Any]) -> None:
    before, image = TO_FLOAT[name]
    last = bool(image)
    model = whole_pixels_net(*before, shape=("n", 6, 6, 3) if last else ("n", 3, 6, 6))
    pixels = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8, generator=Generator().manual_seed(0))
    expected = run_onnxruntime(model, pixels.permute(0, 2, 3, 1).contiguous() if last else pixels)
    x = pixels.float() if fields else pixels.float() / 255
    net = load(model, image=image, **fields)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(net.double(), x.double().requires_grad_())


@pytest.mark.parametrize("fields", [{"range": [-1, 1]}, {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_normalization_of_whole_pixels_in_the_manifest_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidModel, match="leave them out") as caught:
        load(whole_pixels_net(cast("x", "ready")), **fields)
    assert caught.value.field == "range"


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("Div", ["x", "x"], ["sum"]),
        cast("x", "sum", TensorProto.INT8),
        helper.make_node("Gather", ["white", "x"], ["sum"]),
    ],
)
def test_arithmetic_of_whole_pixels_is_refused(node: onnx.NodeProto) -> None:
    with pytest.raises(InvalidModel, match="computes with it"):
        load(whole_pixels_net(node, cast("sum", "ready")))
