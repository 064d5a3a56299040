"""Operator by operator: ONNX's own test cases, and gradients against finite differences."""

from __future__ import annotations

import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.backend.test.case.test_case import TestCase
from torch import Generator, Tensor

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.errors import InvalidModel
from touchstone.models.onnx import build, operators, read
from touchstone.models.onnx.evaluation import fold_constants, operator_of
from touchstone.models.onnx.graph import Node
from touchstone.models.onnx.operators.quantization import ROUNDING
from touchstone.models.onnx.randomness import RANDOM
from touchstone.models.onnx.reader import read_node, read_weights
from touchstone.models.onnx.registry import supported_operators
from touchstone.models.onnx.tensors import DTYPES, read_tensor

assert operators  # importing it registered them

OURS = sorted(name for name in supported_operators() if "." not in name)

NO_UNSIGNED = "PyTorch has no arithmetic on unsigned integers of more than 8 bits"
EMPTY = "the extreme of nothing is not defined in PyTorch"
ATTENTION = "attention with a past, a softcap, a window or inner results as outputs is refused"

EXCLUDED: Mapping[str, str] = {
    **{
        f"test_{operator}_{kind}{suffix}": NO_UNSIGNED
        for operator in (
            *("add", "sub", "div", "max", "min", "mod"),
            *("greater", "less", "greater_equal", "less_equal"),
        )
        for kind in ("uint16", "uint32", "uint64")
        for suffix in (("", "_expanded") if operator.endswith("_equal") else ("",))
    },
    "test_maxpool_with_argmax_2d_precomputed_pads": "the indices of the largest elements are refused",
    "test_maxpool_with_argmax_2d_precomputed_strides": "the indices of the largest elements are refused",
    "test_mvn": "it normalises over the batch, which is refused",
    "test_reduce_max_empty_set": EMPTY,
    "test_reduce_max_empty_set_bool": EMPTY,
    "test_reduce_min_empty_set": EMPTY,
}


def why_excluded(case: TestCase) -> str | None:
    """Why a case cannot pass, if it cannot."""
    for node in case.model.graph.node:
        odd = any(one.f or one.i for one in node.attribute if one.name in ("softcap", "left_window_size"))
        if node.op_type == "Attention" and (len(node.input) > 4 or len(node.output) > 1 or odd):
            return ATTENTION
    return EXCLUDED.get(case.name)


HALF_PRECISION_TOLERANCE = 2e-3
"""Attention in half precision: another order of operations."""

UNTESTED = {"GlobalLpPool", "ImageScaler", "MeanVarianceNormalization", *RANDOM}
"""Operators of which ONNX has no case that is possible here; others judge them elsewhere."""

INTEGERS_AS_FLOATS = {*ROUNDING, "ConvInteger", "MatMulInteger"}
"""Operators of quantized networks, which keep integers as floats."""

RANDOM_CASES = ("test_bernoulli", "test_training_dropout")
"""How names of cases begin whose results are random."""


@functools.cache
def cases() -> dict[str, list[tuple[TestCase, list[Node], int]]]:
    """ONNX's cases by the operator they test; those of several operators under ""."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases divide by zero and overflow on purpose
        from onnx.backend.test.loader import load_model_tests  # noqa: PLC0415

        found = load_model_tests(kind="node")
    by_operator: dict[str, list[tuple[TestCase, list[Node], int]]] = defaultdict(list)
    for case in found:
        kinds = {node.domain + node.op_type for node in case.model.graph.node}
        if kinds <= set(OURS) and not is_foreign(case) and not case.name.startswith(RANDOM_CASES):
            opset = max(entry.version for entry in case.model.opset_import if not entry.domain)
            nodes = [read_node(node) for node in case.model.graph.node]
            by_operator[kinds.pop() if len(kinds) == 1 else ""].append((case, nodes, opset))
    return by_operator


def is_foreign(case: TestCase) -> bool:
    """Whether a case has values of types that no classifier computes with, such as strings or 4 bits."""
    graph = case.model.graph
    ports = [*graph.input, *graph.output]
    types = {port.type.tensor_type.elem_type for port in ports}
    types |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    inner = {
        tensor.data_type for node in graph.node for a in node.attribute if a.HasField("t") for tensor in [a.t]
    }
    return not (types | inner) <= set(DTYPES)


def to_array(value: Any) -> np.ndarray[Any, Any]:
    return read_tensor(value, "a case") if isinstance(value, onnx.TensorProto) else np.asarray(value)


def check(case: TestCase, nodes: list[Node], opset: int) -> None:
    graph = case.model.graph
    for inputs, outputs in case.data_sets:
        known = {name: torch.from_numpy(value) for name, value in read_weights(graph).items()}
        for port, value in zip(graph.input, inputs, strict=False):
            known[port.name] = torch.from_numpy(to_array(value).copy())
        assert fold_constants(nodes, opset, known) == []
        for port, value in zip(graph.output, outputs, strict=True):
            ours, expected = known[port.name].numpy(), to_array(value)
            assert ours.dtype == expected.dtype or any(node.kind in INTEGERS_AS_FLOATS for node in nodes)
            np.testing.assert_allclose(
                ours,
                expected,
                rtol=HALF_PRECISION_TOLERANCE if "fp16" in case.name else case.rtol,
                atol=max(case.atol, 1e-6),
                err_msg=case.name,
            )


@pytest.mark.parametrize("operator", OURS)
def test_operator_passes_the_onnx_test_cases(operator: str) -> None:
    chosen = [one for one in cases()[operator] if why_excluded(one[0]) is None]
    assert (len(chosen) == 0) == (operator in UNTESTED)
    for case, nodes, opset in chosen:
        check(case, nodes, opset)


def test_onnx_test_cases_of_several_operators_pass() -> None:
    chosen = [one for one in cases()[""] if why_excluded(one[0]) is None]
    assert len(chosen) > 100
    for case, nodes, opset in chosen:
        check(case, nodes, opset)


def test_excluded_onnx_test_cases_are_refused_with_a_message() -> None:
    excluded = [one for some in cases().values() for one in some if why_excluded(one[0])]
    assert {case.name for case, _, _ in excluded} >= EXCLUDED.keys()
    for case, nodes, opset in excluded:
        with pytest.raises(InvalidModel, match="cannot be computed"):
            check(case, nodes, opset)


DIFFERENTIABLE: list[tuple[str, dict[str, Any], list[Any], int]] = [
    # operator, attributes, constant inputs after the image, numbers an image gives
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": 3}, [np.ones((6, 1, 3, 2)) / 6], 6 * 4 * 6),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 0, 1]}, [np.ones((3, 2, 3, 3)) / 9], 2 * 12 * 12),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, [], 27),
    (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
        [],
        27,
    ),
    ("LpPool", {"kernel_shape": [2, 2], "strides": [2, 2], "p": 3}, [], 27),
    ("GlobalMaxPool", {}, [], 3),
    ("GlobalLpPool", {"p": 3}, [], 3),
    ("MeanVarianceNormalization", {"axes": [2, 3]}, [], 108),
    ("LRN", {"size": 3}, [], 108),
    ("InstanceNormalization", {}, [np.arange(3.0), np.ones(3)], 108),
    ("LpNormalization", {"axis": 1}, [], 108),
    ("Resize", {"mode": "linear"}, [np.zeros(0), np.array([1, 1, 1.5, 2.0], "f4")], 3 * 9 * 12),
    ("Resize", {"mode": "cubic", "antialias": 1}, [np.zeros(0), np.array([1, 1, 0.5, 0.7], "f4")], 3 * 3 * 4),
    ("Pad", {"mode": "reflect"}, [np.array([0, 0, 2, 1, 0, 0, 1, 0])], 3 * 9 * 7),
    ("Gather", {"axis": 2}, [np.array([[0, -1], [3, 3]])], 3 * 4 * 6),
    ("Slice", {}, [np.array([4, 0]), np.array([-7, 6]), np.array([2, 3]), np.array([-2, 4])], 3 * 3 * 2),
    ("DepthToSpace", {"blocksize": 1}, [], 108),
    ("SpaceToDepth", {"blocksize": 2}, [], 108),
    ("CumSum", {"reverse": 1, "exclusive": 1}, [np.array(1)], 108),
    ("ReduceLogSumExp", {}, [np.array([1, 3])], 6),
    ("ReduceL2", {"keepdims": 0}, [np.array([-1])], 18),
    ("Trilu", {"upper": 0}, [np.array(1)], 108),
    ("Selu", {}, [], 108),
    ("HardSigmoid", {}, [], 108),
    ("Softplus", {}, [], 108),
    ("Pow", {}, [np.array(3.0)], 108),
    ("Einsum", {"equation": "nchw,wk->nkch"}, [np.ones((6, 2))], 36),
]


@pytest.mark.parametrize(("operator", "attributes", "constants", "count"), DIFFERENTIABLE)
def test_operator_matches_onnxruntime_and_finite_difference_gradients(
    operator: str, attributes: dict[str, Any], constants: list[Any], count: int
) -> None:
    nodes, weights = linear_head("features", count)
    extra = {
        f"c{i}": value.astype("f4") if value.dtype == "f8" else value for i, value in enumerate(constants)
    }
    node = helper.make_node(operator, ["x", *extra], ["features"], **attributes)
    data = build_onnx_model(node, *nodes, weights={**weights, **extra}).SerializeToString()
    module = build(read(data)).module
    x = torch.linspace(0.05, 1.05, 2 * 108, dtype=torch.float64)
    x = x[torch.randperm(216, generator=Generator().manual_seed(0))].view(2, 3, 6, 6)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x.float().numpy()})
    np.testing.assert_allclose(module(x.float()).numpy(), expected, rtol=1e-4, atol=1e-5)
    module.double()
    assert torch.autograd.gradcheck(module, x.requires_grad_())


def test_half_precision_network_gives_single_precision_logits() -> None:
    weight = np.ones((108, 5), np.float16) / 8
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = build_onnx_model(*nodes, weights={"w": weight}, dtype=TensorProto.FLOAT16)
    x = torch.rand(2, 3, 6, 6)
    y = build(read(model.SerializeToString())).module(x)
    assert y.dtype == torch.float32
    assert torch.allclose(y, x.flatten(1).sum(1, keepdim=True).expand(2, 5) / 8, rtol=5e-3)
    assert math.isfinite(float(y.sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_of_the_type_of_the_image_are_known(dtype: torch.dtype) -> None:
    nodes, weights = linear_head("features", 108)
    bounds = {"low": np.array(0.25), "high": np.array(0.75)}
    casts = [helper.make_node("CastLike", [name, "x"], [f"{name} cast"]) for name in bounds]
    clip = helper.make_node("Clip", ["x", "low cast", "high cast"], ["features"])
    model = build_onnx_model(*casts, clip, *nodes, weights={**weights, **bounds})
    module = build(read(model.SerializeToString())).module.to(dtype)
    x = torch.rand(2, 3, 6, 6, dtype=dtype)
    expected = x.clamp(0.25, 0.75).flatten(1) @ torch.from_numpy(weights["head"]).to(dtype)
    assert torch.allclose(module(x), expected, atol=1e-6)


STEPS, BLOCK = 5000, 33
RECURRENT = [np.zeros((2, 1, 3), "f4"), np.zeros((1, 16, 3), "f4"), np.zeros((1, 16, 4), "f4")]


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs", "reason"),
    [
        ("LSTM", {"input_forget": 1}, RECURRENT, "coupled gates"),
        ("LSTM", {"activations": ("Sigmoid", "Relu", "Tanh")}, RECURRENT, "activations Sigmoid, Relu, Tanh"),
        ("LSTM", {"direction": "bidirectional"}, RECURRENT, "does not fit weights for 1"),
        ("LSTM", {}, [np.zeros((STEPS, 1, 3), "f4"), *RECURRENT[1:]], "at most 4096"),
        (
            "LSTM",
            {},
            [*RECURRENT, np.zeros((1, 32), "f4"), np.array([1], "i4")],
            "the same length",
        ),
        (
            "Col2Im",
            {},
            [np.zeros((1, BLOCK**2, 1), "f4"), np.array([BLOCK, BLOCK]), np.array([BLOCK, BLOCK])],
            "at most 1024",
        ),
    ],
)
def test_unusual_operator_is_refused_with_the_reason(
    operator: str, attributes: dict[str, Any], inputs: list[Any], reason: str
) -> None:
    known = {f"i{number}": torch.from_numpy(value) for number, value in enumerate(inputs)}
    with pytest.raises(InvalidModel, match=reason):
        fold_constants([Node(operator, tuple(known), ("y",), attributes)], 18, known)


def test_recurrent_layer_of_relus_equals_that_of_pytorch() -> None:
    layer = torch.nn.RNN(3, 4, nonlinearity="relu", bidirectional=True)
    torch.manual_seed(0)
    weights = [torch.nn.init.normal_(parameter).detach() for parameter in layer.parameters()]
    w, r = (torch.stack(weights[start::4]) for start in (0, 1))
    b = torch.stack([torch.cat(weights[start : start + 2]) for start in (2, 6)])
    known = {"x": torch.randn(5, 2, 3), "w": w, "r": r, "b": b}
    expected, last = layer(known["x"])
    attributes = {"activations": ("Relu", "Relu"), "direction": "bidirectional", "hidden_size": 4}
    fold_constants([Node("RNN", tuple(known), ("y", "h"), attributes)], 18, known)
    y = known["y"].transpose(1, 2).flatten(2)
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.allclose(known["h"], last, atol=1e-6)


def odd_layouts(shape: tuple[int, int, int, int]) -> list[Tensor]:
    """One random tensor in several layouts in memory, as transposed tokens and convolutions leave them."""
    values = torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(0))
    _, channels, _, width = shape
    last = values.clone(memory_format=torch.channels_last)
    return [values, last, last.as_strided(shape, (channels, 1, width * channels, channels))]


@pytest.mark.parametrize("operator", ["BatchNormalization", "InstanceNormalization"])
def test_gradient_of_normalization_does_not_depend_on_layouts_in_memory(operator: str) -> None:
    draw = Generator().manual_seed(1)
    mean, var, scale, bias = (torch.rand(8, dtype=torch.float64, generator=draw) + 0.5 for _ in range(4))
    statistics = (scale, bias, mean, var) if operator == "BatchNormalization" else (scale, bias)
    function = operator_of(Node(operator, (), (), {}), 18).function
    found = []
    for x in odd_layouts((1, 8, 6, 6)):
        leaf = x.detach().requires_grad_()
        y = function(leaf, *statistics)
        found += [torch.autograd.grad(y, leaf, g, retain_graph=True)[0] for g in odd_layouts((1, 8, 6, 6))]
    reference = odd_layouts((1, 8, 6, 6))[0].requires_grad_()
    moments = {"dim": (2, 3), "keepdim": True}
    own = reference.mean(**moments), reference.var(**moments, correction=0)
    center, spread = (mean.view(-1, 1, 1), var.view(-1, 1, 1)) if len(statistics) == 4 else own
    y = (reference - center) / torch.sqrt(spread + 1e-5) * scale.view(-1, 1, 1)
    [expected] = torch.autograd.grad(y, reference, odd_layouts((1, 8, 6, 6))[0])
    assert all(torch.allclose(one, expected, atol=1e-9) for one in found)
