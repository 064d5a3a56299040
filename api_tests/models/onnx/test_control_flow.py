"""If and Loop: decided by shapes like onnxruntime does, refused where the pixels decide."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper, parser

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.errors import Failure, InvalidModel, UnsupportedOperator
from touchstone.models.onnx import build, control_flow, read

BY_HEIGHT = """
    sizes = Shape (x)
    height = Gather (sizes, two)
    tall = Less (limit, height)
    features = If (tall) <
        then_branch = tall_branch () => (float[n,3,6,6] a) { a = Neg (x) },
        else_branch = short_branch () => (float[n,3,6,6] b) <float half = {0.5}> { b = Mul (x, half) }
    >
"""

THREE_TURNS = """
    sum, states = Loop (count, going, x) <body = turn (int64 i, bool c, float[n,3,6,6] old)
        => (bool more, float[n,3,6,6] new, float[n,3,6,6] kept) {
            more = Identity (c)
            step = Cast <to = 1> (i)
            shifted = Add (old, step)
            new = Sin (shifted)
            even = Equal (i, one)
            kept = If (even) <
                then_branch = even_branch () => (float[n,3,6,6] a) {
                    twice = Add (new, new)
                    a = Mul (twice, x)
                },
                else_branch = odd_branch () => (float[n,3,6,6] b) { b = Identity (new) }
            >
        }>
    all = ReduceSum <keepdims = 0> (states, zeros)
    features = Add (sum, all)
"""

WHILE = """
    last = Loop (, going, x) <body = turn (int64 i, bool c, float[n,3,6,6] old)
        => (bool more, float[n,3,6,6] new) {
            new = Sin (old)
            more = Less (i, count)
        }>
    features = Identity (last)
"""

CONSTANTS = {
    **{name: np.array(value) for name, value in (("two", 2), ("one", 1), ("count", 3), ("going", True))},
    "zeros": np.array([0]),
}


def model(text: str, **constants: int) -> ModelProto:
    """A classifier whose features are computed by these nodes."""
    nodes, weights = linear_head("features", 108)
    made = build_onnx_model(*nodes, weights=weights)
    graph = parser.parse_graph(f"g (float[n,3,6,6] x) => (float[n,3,6,6] features) {{ {text} }}")
    for node in reversed(graph.node):
        made.graph.node.insert(0, node)
    for name, value in {**CONSTANTS, **{name: np.array(one) for name, one in constants.items()}}.items():
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


@pytest.mark.parametrize(
    ("text", "constants"),
    [(BY_HEIGHT, {"limit": 5}), (BY_HEIGHT, {"limit": 6}), (THREE_TURNS, {}), (WHILE, {})],
)
def test_control_flow_that_shapes_decide_matches_onnxruntime(text: str, constants: dict[str, int]) -> None:
    data = model(text, **constants).SerializeToString()
    imported = build(read(data))
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(imported.module(x), session.run(None, {"x": x.numpy()})[0], atol=1e-5)
    assert imported.batch is None
    assert torch.autograd.gradcheck(imported.module.double(), x.double().requires_grad_())


PIXELS_DECIDE = """
    total = ReduceSum <keepdims = 0> (x)
    bright = Less (total, total)
    features = If (bright) <
        then_branch = a () => (float[n,3,6,6] p) { p = Neg (x) },
        else_branch = b () => (float[n,3,6,6] q) { q = Identity (x) }
    >
"""
ENDLESS = WHILE.replace("Less (i, count)", "Identity (c)")
NO_TURN = THREE_TURNS.replace("(count, going, x)", "(zero, going, x)")
NO_BODY = "features = Loop (count, going, x)"
FOREIGN = WHILE.replace("new = Sin (old)", "new = NonZero (old)")


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (PIXELS_DECIDE, UnsupportedOperator, "the pixels decide what it runs; export by tracing"),
        (ENDLESS, InvalidModel, "the loops run more than 300 nodes"),
        (NO_TURN, InvalidModel, "takes no turn"),
        (NO_BODY, InvalidModel, "has no body"),
        (FOREIGN, UnsupportedOperator, "NonZero"),
        (WHILE.replace("Sin (old)", "Sin (nothing)"), InvalidModel, "nothing in the file produces"),
    ],
)
def test_control_flow_that_cannot_be_decided_is_refused_with_the_reason(
    text: str, kind: type[Failure], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_flow, "MAX_UNROLLED", 300)
    with pytest.raises(kind) as error:
        build(read(model(text, zero=0).SerializeToString()))
    assert reason in error.value.detail


@pytest.mark.parametrize(
    ("operator", "inputs", "bodies"),
    [
        ("Loop", ["", "", "x"], ["body"]),
        ("Loop", [], ["body"]),
        ("If", ["yes"], ["then_branch", "else_branch"]),
        ("If", [], ["then_branch", "else_branch"]),
    ],
)
def test_control_flow_that_does_not_fit_its_body_is_refused(
    operator: str, inputs: list[str], bodies: list[str]
) -> None:
    body = dict.fromkeys(bodies, helper.make_graph([], "body", [], []))
    nodes, weights = linear_head("both", 108)
    flow = helper.make_node(operator, inputs, ["features"], **body)
    both = helper.make_node("Add", ["features", "x"], ["both"])
    made = build_onnx_model(flow, both, *nodes, weights={**weights, "yes": np.array(True)})
    with pytest.raises((InvalidModel, UnsupportedOperator)):
        build(read(made.SerializeToString()))
