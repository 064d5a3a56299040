"""Model files of users: small ones with known answers, and hostile ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from api_tests.support.linear_models import linear_model
from touchstone.models.manifest import Manifest
from touchstone.registration.request import Registration, describe_model

SIDE = 8
PIXELS = 3 * SIDE * SIDE
REGISTRATION_FIELDS: dict[str, Any] = {
    "id": "lin",
    "classes": ["cat", "dog"],
    "input": {"height": SIDE, "width": SIDE},
}

TIMM_STUB = '''
"""A stub of timm with one architecture, which is linear."""
from torch import nn
__version__ = "0"

def is_model(name):
    return name == "linear"

def create_model(name, pretrained, num_classes, in_chans, pretrained_cfg_overlay):
    assert not pretrained
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))
'''


def write_timm_stub(folder: Path) -> Path:
    """Write the stub into a folder."""
    (folder / "timm.py").write_text(TIMM_STUB)
    return folder


def linear_net(*, classes: int = 2, seed: int = 0) -> nn.Module:
    return linear_model(classes=classes, shape=(3, SIDE, SIDE), seed=seed)


def linear_safetensors(*, seed: int = 0) -> bytes:
    return save({name: value.contiguous() for name, value in linear_net(seed=seed).state_dict().items()})


def linear_onnx(*, classes: int = 2, seed: int = 0, end: str = "", batch: int | str = "n") -> bytes:
    """x -> Flatten -> Gemm, and then `end`: nothing, Softmax, or the same as Exp over its sum."""
    layer: Any = linear_net(classes=classes, seed=seed)[1]  # type: ignore[index]
    weights = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    if end == "Softmax":
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
    elif end == "Exp":
        weights["axis"] = np.array([1], np.int64)
        nodes.append(helper.make_node("Exp", ["logits"], ["e"]))
        nodes.append(helper.make_node("ReduceSum", ["e", "axis"], ["s"], keepdims=1))
        nodes.append(helper.make_node("Div", ["e", "s"], ["p"]))
    elif end:
        nodes.append(helper.make_node(end, ["logits"], ["p"]))
    return onnx_file(nodes, weights, "p" if end else "logits", classes=classes, batch=batch)


def onnx_file(
    nodes: list[Any],
    weights: dict[str, Any],
    output: str,
    *,
    classes: int = 2,
    batch: int | str = "n",
    shape: tuple[int, ...] = (3, SIDE, SIDE),
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def memory_hungry_onnx(times: int) -> bytes:
    """A network that expands its input so many times before it sums it up: valid, too large for memory."""
    weights = {
        "column": np.array([0, PIXELS, 1], np.int64),
        "wide": np.array([1, PIXELS, times], np.int64),
        "axis": np.array([2], np.int64),
        "w": np.ones((PIXELS, 2), np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "column"], ["thin"]),
        helper.make_node("Expand", ["thin", "wide"], ["huge"]),
        helper.make_node("Sin", ["huge"], ["bent"]),
        helper.make_node("ReduceSum", ["bent", "axis"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "w"], ["y"]),
    ]
    return onnx_file(nodes, weights, "y")


def slow_onnx(layers: int) -> bytes:
    """One large convolution after another."""
    weights: dict[str, Any] = {
        "first": np.ones((64, 3, 1, 1), np.float32),
        "w": np.full((64, 64, 15, 15), 1e-4, np.float32),
        "last": np.ones((64, 2), np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [helper.make_node("Conv", ["x", "first"], ["h0"])]
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [f"h{i}", "w"], [f"h{i + 1}"], pads=[7, 7, 7, 7]))
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}"], ["mean"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["mean", "last"], ["y"]))
    return onnx_file(nodes, weights, "y", shape=(3, 64, 64))


def build_manifest(data: bytes, **fields: Any) -> Manifest:
    """The manifest of a file before its trial."""
    return describe_model(Registration.parse({**REGISTRATION_FIELDS, **fields}), data, limit=2**29)
