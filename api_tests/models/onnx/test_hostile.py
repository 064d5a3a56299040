"""Damaged, unsupported and hostile files: each is refused with a message, and nothing of it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.errors import Failure, InvalidModel, UnsupportedOperator
from touchstone.models.onnx import build, read
from touchstone.models.onnx.reader import MAX_NODES

node = helper.make_node


def valid() -> ModelProto:
    """A file that can be imported, to be broken."""
    nodes, weights = linear_head("features", 108)
    weights["w"] = np.ones((3, 3, 3, 3), np.float32)
    return build_onnx_model(
        node("Conv", ["x", "w"], ["features"], pads=[1, 1, 1, 1]), *nodes, weights=weights
    )


def expect_invalid(model: ModelProto | bytes) -> InvalidModel:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(InvalidModel) as caught:
        build(read(data))
    return caught.value


def expect_unsupported(*nodes: onnx.NodeProto) -> UnsupportedOperator:
    rest, weights = linear_head("features", 108)
    model = build_onnx_model(*nodes, *rest, weights=weights)
    with pytest.raises(UnsupportedOperator) as caught:
        build(read(model.SerializeToString()))
    return caught.value


def test_file_is_valid_before_these_tests_break_it() -> None:
    assert build(read(valid().SerializeToString())).classes == 5


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"no model", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" * 20])
def test_bytes_that_are_not_onnx_are_refused(data: bytes) -> None:
    assert "not an ONNX model" in expect_invalid(data).detail


def test_truncated_file_is_refused() -> None:
    data = valid().SerializeToString()
    for end in range(0, len(data), 97):
        with pytest.raises(Failure):
            build(read(data[:end]))


@pytest.mark.parametrize("reference", ["twice", "by its location", "by its address"])
def test_external_weights_are_refused(reference: str) -> None:
    model = valid()
    model.graph.initializer[0].ClearField("raw_data")
    if reference != "by its address":
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    if reference != "by its location":
        model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    assert "another file" in expect_invalid(model).detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.dims.append(7), "needs"),
        (lambda w: w.dims.extend([2**62, 2**62]), "needs"),
        (lambda w: w.dims.insert(0, -1), "impossible shape"),
        (lambda w: w.dims.extend([1] * 60), "impossible shape"),
        (lambda w: setattr(w, "raw_data", w.raw_data[:-1]), "no whole number"),
        (lambda w: setattr(w, "data_type", TensorProto.STRING), "STRING"),
        (lambda w: setattr(w, "data_type", TensorProto.DOUBLE), "numbers"),
        (lambda w: setattr(w, "data_type", 99), "99"),
        (lambda w: w.segment.SetInParent(), "segment"),
        (lambda w: w.CopyFrom(TensorProto(name="w", dims=[1], data_type=3, int32_data=[128])), "fit int8"),
        (lambda w: setattr(w, "name", ""), "no name"),
    ],
)
def test_malformed_weights_are_refused(change: Any, says: str) -> None:
    model = valid()
    change(model.graph.initializer[0])
    assert says in expect_invalid(model).detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g.ClearField("input"), "one input"),
        (lambda g: g.input.append(helper.make_tensor_value_info("z", 1, [1])), "one input"),
        (lambda g: g.ClearField("output"), "one output"),
        (lambda g: g.output.append(g.output[0]), "several outputs"),
        (lambda g: setattr(g.output[0], "name", "nothing"), "does not depend"),
        (lambda g: g.input[0].type.tensor_type.shape.dim.pop(), "3 dimensions"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.INT32), "no gradient"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[0], "dim_value", 65), "65 images"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[1], "dim_value", 4), "4 channels"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_value", 1 << 40), "larger than"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_param", "h"), "open"),
        (lambda g: g.input[0].type.sequence_type.SetInParent(), "must be a tensor"),
        (lambda g: g.initializer.append(g.initializer[0]), "two weights"),
        (lambda g: g.node[0].output.__setitem__(0, "head"), "unique"),
        (lambda g: g.node[1].input.__setitem__(0, "gone"), "nothing in the file produces"),
        (lambda g: g.node[0].input.__setitem__(0, "flat"), "a cycle"),
        (lambda g: g.node[0].output.pop(), "no output"),
        (lambda g: g.node[0].output.append("more"), "2 outputs; 1 are possible"),
        (lambda g: g.node[0].input.pop(), "cannot be computed"),
        (lambda g: g.node[0].input.extend(["w"] * 5), "cannot be computed"),
        (lambda g: g.node[0].attribute.append(helper.make_attribute("surprise", 1)), "cannot be computed"),
        (lambda g: g.node[0].attribute.append(helper.make_attribute("strides", [0, 0])), "must be positive"),
        (lambda g: g.node[0].attribute.append(helper.make_attribute("group", "two")), "cannot be computed"),
        (lambda g: g.node[0].attribute.append(helper.make_attribute("pads", [1 << 40] * 4)), "cannot be"),
        (lambda g: g.sparse_initializer.add(), "sparse"),
    ],
)
def test_inconsistent_graph_is_refused(change: Any, says: str) -> None:
    model = valid()
    change(model.graph)
    assert says in expect_invalid(model).detail


def test_network_with_too_many_nodes_is_refused() -> None:
    model = valid()
    model.graph.node.extend([node("Relu", ["x"], ["y"])] * MAX_NODES)
    assert f"at most {MAX_NODES} are" in expect_invalid(model).detail


def test_long_cycle_and_reversed_chain_are_sorted_out_quickly() -> None:
    chain = [node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in reversed(range(MAX_NODES - 1))]
    last = build_onnx_model(*chain, node("Identity", [f"v{MAX_NODES - 1}"], ["y"]))
    first = last.graph.node[MAX_NODES - 2]
    began = time.monotonic()
    first.input[0] = "x"
    assert read(last.SerializeToString()).nodes[0].inputs == ("x",)
    first.input[0] = "y"
    assert "a cycle" in expect_invalid(last).detail
    assert time.monotonic() - began < 60


def test_unknown_opset_is_refused() -> None:
    model = valid()
    model.opset_import[0].version = 29
    assert "opset 29" in expect_invalid(model).detail
    model.opset_import[0].version = 1000
    assert "opset 1000" in expect_invalid(model).detail
    model.ClearField("opset_import")
    assert "opset" in expect_invalid(model).detail


@pytest.mark.parametrize("name", [b"features", b"unread", b"strange"])
def test_name_that_is_not_utf8_is_refused(name: bytes) -> None:
    model = valid()
    model.graph.initializer.add(name="unread", data_type=TensorProto.FLOAT, float_data=[1.0])
    model.graph.node[0].attribute.append(helper.make_attribute("strange", 1))
    data = model.SerializeToString().replace(name, name[:-2] + b"\xff\xfe")
    assert "not text" in expect_invalid(data).detail


def test_all_unsupported_operators_are_named() -> None:
    error = expect_unsupported(
        node("FusedConv", ["x"], ["a"], domain="com.microsoft", name="first"),
        node("TreeEnsemble", ["a"], ["b"], domain="ai.onnx.ml"),
        node("NonZero", ["b"], ["c"]),
        node("fused.Silu", ["c"], ["features"]),
    )
    assert error.extra["operators"] == [
        "NonZero",
        "ai.onnx.ml.TreeEnsemble",
        "com.microsoft.FusedConv",
        "fused.Silu",
    ]
    assert all(part in error.detail for part in ("FusedConv", "com.microsoft", "opset 18", "first"))


def test_scans_are_refused_with_advice() -> None:
    body = helper.make_graph([], "body", [], [])
    assert "tracing" in expect_unsupported(node("Scan", ["x"], ["features"], body=body)).detail


def test_unused_operator_domain_is_ignored() -> None:
    model = valid()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert build(read(model.SerializeToString())).classes == 5


@pytest.mark.parametrize(
    "bomb",
    [
        [node("ConstantOfShape", ["sides"], ["big"])],
        [node("Constant", [], ["one"], value_float=1.0), node("Expand", ["one", "sides"], ["big"])],
        [node("Constant", [], ["r"], value_ints=[1 << 30]), node("Tile", ["w1", "r"], ["big"])],
        [node("Range", ["zero", "end", "one"], ["big"])],
        [
            *(node("Shape", ["x"], ["s"]), node("Mul", ["s", "many"], ["t"])),
            node("ConstantOfShape", ["t"], ["big"]),
        ],
        [
            *(node("ConstantOfShape", ["most"], ["half"]), node("ConstantOfShape", ["most"], ["rest"])),
            node("Add", ["half", "rest"], ["big"]),
        ],
    ],
)
def test_constants_that_expand_to_huge_tensors_are_refused(bomb: list[onnx.NodeProto]) -> None:
    nodes, weights = linear_head("features", 108)
    weights |= {"sides": np.array([1 << 20, 1 << 20]), "most": np.array([10 << 20]), "w1": np.ones(1, "f4")}
    weights["many"] = np.array(1 << 10)
    weights |= {"zero": np.array(0), "one": np.array(1), "end": np.array(1 << 40)}
    if bomb[0].op_type == "Constant":
        weights.pop("one")
    rest = [node("ReduceMax", ["big"], ["m"], keepdims=0), node("Cast", ["m"], ["f"], to=1)]
    model = build_onnx_model(*bomb, *rest, node("Add", ["x", "f"], ["features"]), *nodes, weights=weights)
    assert "larger than" in expect_invalid(model).detail


def test_pixels_that_expand_to_huge_tensors_are_refused() -> None:
    nodes, weights = linear_head("features", 108)
    weights["times"] = np.array([1, 1000, 1000, 1000])
    model = build_onnx_model(
        node("Tile", ["x", "times"], ["big"]),
        node("ReduceMax", ["big"], ["m"], keepdims=1),
        node("Add", ["x", "m"], ["features"]),
        *nodes,
        weights=weights,
    )
    assert "larger than" in expect_invalid(model).detail


@pytest.mark.parametrize(
    ("wide", "says"),
    [
        (node("Resize", ["x", "", "", "sides"], ["wide"]), "a side of 8193 is too large"),
        (node("Pad", ["x", "pads"], ["wide"], mode="edge"), "cannot pad a side of 6 by 4097"),
    ],
)
def test_excessive_side_length_is_refused(wide: onnx.NodeProto, says: str) -> None:
    nodes, weights = linear_head("features", 108)
    weights |= {"sides": np.array([1, 3, 6, 8193]), "pads": np.array([0] * 7 + [4097])}
    model = build_onnx_model(
        wide,
        node("ReduceMax", ["wide"], ["m"], keepdims=1),
        *(node("Add", ["x", "m"], ["features"]), *nodes),
        weights=weights,
    )
    assert says in expect_invalid(model).detail


def test_network_that_would_compute_for_hours_is_refused() -> None:
    nodes, weights = linear_head("features", 108)
    weights["times"] = np.array([1, 1, 500, 500])
    model = build_onnx_model(
        node("Tile", ["x", "times"], ["v0"]),
        *(node("MatMul", [f"v{i}", "v0"], [f"v{i + 1}"]) for i in range(20)),
        node("ReduceMax", ["v20"], ["m"], keepdims=1),
        *(node("Add", ["x", "m"], ["features"]), *nodes),
        weights=weights,
    )
    start = time.monotonic()
    assert "one pass costs" in expect_invalid(model).detail
    assert time.monotonic() - start < 60


def test_network_with_gigabytes_of_activations_is_refused() -> None:
    nodes, weights = linear_head("features", 108)
    weights["times"] = np.array([1, 1, 900, 900])
    model = build_onnx_model(
        node("Tile", ["x", "times"], ["v0"]),
        *(node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(25)),
        node("ReduceMax", ["v25"], ["m"], keepdims=1),
        *(node("Add", ["x", "m"], ["features"]), *nodes),
        weights=weights,
    )
    assert "8 GiB are allowed" in expect_invalid(model).detail


@pytest.mark.parametrize(
    ("nodes", "shape", "says"),
    [
        ([node("ArgMax", ["x"], ["y"], axis=1)], ("n", 3), "not the class alone"),
        ([node("Identity", ["x"], ["y"])], ("n", 3), "a classifier gives"),
        ([node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["y"], to=1)], ("n", 4), "not on its pixels"),
        (
            [
                node("GlobalAveragePool", ["x"], ["p"]),
                node("Greater", ["p", "p"], ["g"]),
                node("Cast", ["g"], ["y"], to=1),
            ],
            ("n", 3),
            "no gradient",
        ),
        (
            [
                node("Flatten", ["x"], ["f"]),
                node("Cast", ["f"], ["s"], to=7),
                node("Reshape", ["x", "s"], ["y"]),
            ],
            ("n", 3),
            "depends on the pixels",
        ),
    ],
)
def test_graph_that_is_no_differentiable_classifier_is_refused(
    nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], says: str
) -> None:
    assert says in expect_invalid(build_onnx_model(*nodes, output=shape)).detail


def test_network_in_training_mode_is_refused() -> None:
    nodes, weights = linear_head("features", 108)
    weights |= {"p": np.ones(3, np.float32)}
    norm = node("BatchNormalization", ["x", "p", "p", "p", "p"], ["features"], training_mode=1)
    assert "eval()" in expect_invalid(build_onnx_model(norm, *nodes, weights=weights)).detail


def test_attributes_of_unexpected_types_are_refused() -> None:
    model = valid()
    odd = AttributeProto(name="group", type=AttributeProto.GRAPH, g=helper.make_graph([], "inner", [], []))
    model.graph.node[0].attribute.append(odd)
    assert "cannot be computed" in expect_invalid(model).detail
    model = valid()
    model.graph.node[0].attribute[0].ref_attr_name = "outer"
    assert "refers to a function" in expect_invalid(model).detail


def test_reading_onnx_needs_no_torch() -> None:
    code = "import sys, touchstone.models.onnx; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def build_small_files() -> list[bytes]:
    """Whole files, small enough that a changed byte often hits structure."""
    nodes, weights = linear_head("features", 3)
    shapes = build_onnx_model(
        *(node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Relu", ["x"], ["r"])),
        node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        *(node("Unsqueeze", ["n", "at"], ["u"]), node("Concat", ["u", "rest"], ["sides"], axis=0)),
        *(node("Reshape", ["m", "sides"], ["b"]), node("ReduceMean", ["b"], ["c"], axes=[2])),
        *(node("Clip", ["c", "low"], ["features"]), *nodes),
        weights={
            **weights,
            **{"zero": np.array(0), "at": np.array([0]), "rest": np.array([3, -1]), "low": np.float32(0)},
        },
        opset=17,
    )
    return [shapes.SerializeToString(), valid().SerializeToString()]


FILES = build_small_files()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_changed_bytes_give_a_clean_failure_or_a_network(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(FILES))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    start = time.monotonic()
    try:
        imported = build(read(bytes(changed)))
    except Failure:
        pass
    else:
        assert imported.classes > 1
    assert time.monotonic() - start < 60
