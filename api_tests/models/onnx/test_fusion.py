"""What is fused computes what its parts compute, and what only looks alike is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import helper
from torch import Generator, Tensor

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.models.onnx import build, builder, read

node = helper.make_node


def weight(*shape: int) -> np.ndarray[Any, Any]:
    fan = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng(len(shape)).standard_normal(shape) / fan**0.5).astype("f4")


WEIGHTS: dict[str, Any] = {
    **{
        "w3": weight(3, 3, 3, 3),
        "w1": weight(3, 3, 1, 1),
        "deep": weight(3, 1, 3, 3),
        "wide": weight(3, 3, 1, 3),
    },
    **{"b": weight(3), "scale": np.array([0.5, 2, -1], "f4"), "var": np.array([0.1, 1, 3], "f4")},
    **{"zero": np.float32(0), "six": np.float32(6), "one": np.float32(1), "half": np.float32(0.5)},
    **{
        "two": np.float32(2),
        "root": np.float32(2**0.5),
        "eps": np.float32(1e-5),
        "ones6": np.full(6, 1.5, "f4"),
    },
    **{"uneven": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "left": np.array([0, 0, 1, 1, 0, 0, 0, 0])},
    **{"last": np.array([-1]), "third": np.array([2]), "square": weight(6, 6)},
}

SAME = {"pads": [1, 1, 1, 1]}


def conv(x: str, y: str, w: str = "w3", *rest: str, **attributes: Any) -> onnx.NodeProto:
    return node("Conv", [x, w, *rest], [y], **(attributes or SAME))


def layer_norm(axes: str) -> list[onnx.NodeProto]:
    return [
        *(node("ReduceMean", ["x", axes], ["mean"]), node("Sub", ["x", "mean"], ["d"])),
        *(node("Pow", ["d", "two"], ["q"]), node("ReduceMean", ["q", axes], ["v"])),
        *(node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["s"]), node("Div", ["d", "s"], ["n"])),
        *(node("Mul", ["ones6", "n"], ["m"]), node("Add", ["m", "ones6"], ["y"])),
    ]


GELU = [node("Div", ["x", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["one", "e"], ["p"])]

GRAPHS: dict[str, tuple[list[onnx.NodeProto], set[str]]] = {
    # nodes from x to y, and the kinds that must be among what is left
    "bias and norm": (
        [conv("x", "c", "w3", "b"), node("BatchNormalization", ["c", "scale", "b", "b", "var"], ["y"])],
        {"Conv"},
    ),
    "norm of a value read twice": (
        [
            conv("x", "c"),
            node("BatchNormalization", ["c", "scale", "b", "b", "var"], ["n"]),
            node("Add", ["c", "n"], ["y"]),
        ],
        {"BatchNormalization"},
    ),
    "zeros on the right": (
        [
            node("Pad", ["x", "uneven"], ["p"]),
            conv("p", "c", pads=[0, 0, 0, 0]),
            conv("c", "d"),
            node("Relu", ["d"], ["y"]),
        ],
        {"fused.Trunk"},
    ),
    "zeros on the left": (
        [
            node("Pad", ["x", "left", "zero"], ["p"]),
            conv("p", "c"),
            node("Relu", ["c"], ["r"]),
            conv("r", "y"),
        ],
        {"fused.Trunk"},
    ),
    "a margin of ones": (
        [node("Pad", ["x", "uneven", "one"], ["p"]), conv("p", "c"), conv("c", "y")],
        {"Pad"},
    ),
    "a mirrored margin": (
        [node("Pad", ["x", "uneven"], ["p"], mode="reflect"), conv("p", "c"), conv("c", "y")],
        {"Pad"},
    ),
    "clamped twice": (
        [
            conv("x", "a"),
            node("Relu", ["a"], ["b1"]),
            conv("b1", "c"),
            node("Relu", ["c"], ["d"]),
            node("Relu", ["d"], ["y"]),
        ],
        {"fused.Trunk", "Relu"},
    ),
    "a clamp at six": (
        [
            conv("x", "a"),
            node("Clip", ["a", "zero", "six"], ["c"]),
            conv("c", "d"),
            node("Clip", ["d", "zero", "six"], ["y"]),
        ],
        {"fused.Trunk"},
    ),
    "a clamp above zero": (
        [conv("x", "a"), node("Clip", ["a", "half", "six"], ["c"]), conv("c", "y")],
        {"Clip", "Conv"},
    ),
    "a clip to pixels": (
        [conv("x", "a"), node("Clip", ["a", "zero", "one"], ["c"]), conv("c", "y")],
        {"Clip", "Conv"},
    ),
    "a skip": (
        [
            conv("x", "a"),
            node("Relu", ["a"], ["s"]),
            conv("s", "c", "deep", group=3, **SAME),
            node("Relu", ["c"], ["d"]),
            conv("d", "e", "w1", "b", pads=[0, 0, 0, 0]),
            node("Add", ["s", "e"], ["f"]),
            node("Relu", ["f"], ["y"]),
        ],
        {"fused.Trunk", "fused.Clamp"},
    ),
    "a skip whose inside is read elsewhere": (
        [
            conv("x", "a"),
            conv("a", "c"),
            conv("c", "d"),
            node("Add", ["a", "d"], ["s"]),
            node("Mul", ["s", "c"], ["y"]),
        ],
        {"Add", "Mul"},
    ),
    "a skip that doubles": ([conv("x", "a"), conv("a", "c"), node("Add", ["c", "c"], ["y"])], {"Add"}),
    "a clamped skip": (
        [conv("x", "a"), conv("a", "c"), node("Relu", ["c"], ["r"]), node("Add", ["a", "r"], ["y"])],
        {"Add"},
    ),
    "kernels that are not square": (
        [conv("x", "a", "wide", pads=[0, 1, 0, 1]), conv("a", "y", "wide", pads=[0, 1, 0, 1])],
        {"Conv"},
    ),
    "strides and dilations": (
        [
            conv("x", "a", pads=[2, 2, 2, 2], dilations=[2, 2]),
            conv("a", "c"),
            conv("c", "y", strides=[1, 2], pads=[1, 1, 1, 2]),
        ],
        {"Conv"},
    ),
    "silu": ([node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])], {"fused.Silu"}),
    "a gate": (
        [node("Neg", ["x"], ["n"]), node("Sigmoid", ["n"], ["s"]), node("Mul", ["s", "x"], ["y"])],
        {"Sigmoid"},
    ),
    "hard swish": (
        [node("HardSigmoid", ["x"], ["s"], alpha=1 / 6), node("Mul", ["x", "s"], ["y"])],
        {"HardSwish"},
    ),
    "nearly hard swish": (
        [node("HardSigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])],
        {"HardSigmoid"},
    ),
    "gelu": ([*GELU, node("Mul", ["p", "x"], ["m"]), node("Mul", ["half", "m"], ["y"])], {"fused.Gelu"}),
    "gelu, halved first": (
        [*GELU, node("Mul", ["half", "x"], ["h"]), node("Mul", ["h", "p"], ["y"])],
        {"fused.Gelu"},
    ),
    "nearly gelu": ([*GELU, node("Mul", ["p", "x"], ["m"]), node("Mul", ["two", "m"], ["y"])], {"Erf"}),
    "layer norm": (layer_norm("last"), {"fused.LayerNorm"}),
    "a norm over rows": (layer_norm("third"), {"ReduceMean"}),
    "linear": (
        [node("MatMul", ["x", "square"], ["m"]), node("Add", ["ones6", "m"], ["y"])],
        {"fused.Linear"},
    ),
    "a sum overwritten": (
        [node("Add", ["x", "x"], ["s"]), node("Relu", ["s"], ["r"]), node("Mul", ["r", "x"], ["y"])],
        {"fused.Clamp"},
    ),
    "a sum that is read again": (
        [
            node("Sub", ["x", "half"], ["t"]),
            node("Add", ["t", "t"], ["s"]),
            node("Relu", ["s"], ["r"]),
            node("Mul", ["r", "s"], ["y"]),
        ],
        {"Relu"},
    ),
}


def logits_and_gradient(data: bytes) -> tuple[set[str], Tensor, Tensor]:
    module = build(read(data)).module
    x = torch.randn(2, 3, 6, 6, generator=Generator().manual_seed(0)).requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, 5)).sum(), x)
    return {node.kind for node in module.nodes}, y.detach(), gradient


@pytest.mark.parametrize("name", GRAPHS)
def test_fused_graph_computes_the_same_logits_and_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, expected = GRAPHS[name]
    whole = [_rename_output(one) for one in nodes]
    count = _count_features(whole)
    rest, weights = linear_head("features", count)
    weights |= WEIGHTS
    data = build_onnx_model(*whole, *rest, weights=weights).SerializeToString()
    kinds, y, gradient = logits_and_gradient(data)
    assert expected <= kinds
    monkeypatch.setattr(builder, "fuse", lambda draft: draft)
    plain, reference, wanted = logits_and_gradient(data)
    assert not any("." in kind for kind in plain)
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def _rename_output(one: onnx.NodeProto) -> onnx.NodeProto:
    """The same node; "y" is not yet the output, but the features of the head."""
    copy = onnx.NodeProto()
    copy.CopyFrom(one)
    copy.output[:] = ["features" if name == "y" else name for name in one.output]
    return copy


def _count_features(nodes: list[onnx.NodeProto]) -> int:
    """How many numbers the features of an image are."""
    model = build_onnx_model(*nodes, weights=WEIGHTS, shape=(1, 3, 6, 6))
    model.graph.output[0].name = "features"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    evaluator = onnx.reference.ReferenceEvaluator(model)
    return int(evaluator.run(None, {"x": np.zeros((1, 3, 6, 6), "f4")})[0].size)
