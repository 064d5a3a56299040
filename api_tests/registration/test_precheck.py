"""What is refused before a trial: other images, other classes, operators that are not supported."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from api_tests.support.onnx_networks import NETWORKS, build_network, export_onnx
from api_tests.support.own_models import SIDE, build_manifest, linear_onnx, linear_safetensors, onnx_file
from touchstone.errors import InvalidModel, UnsupportedOperator
from touchstone.models.onnx.outline import read_outline
from touchstone.models.onnx.reader import read
from touchstone.registration import trial_child
from touchstone.registration.precheck import check_file, check_operators
from touchstone.registration.trial import Trial


def strange_onnx(*, needed: bool = True) -> bytes:
    """A linear network with an operator of nobody's, behind its logits or beside them."""
    model = onnx.load_model_from_string(linear_onnx())
    [port] = model.graph.output
    model.graph.node.append(helper.make_node("Strange", [port.name], ["odd"], domain="com.example", name="s"))
    if needed:
        port.name = "odd"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", NETWORKS)
def test_outline_of_a_network_is_what_the_parser_reads(name: str) -> None:
    data = export_onnx(build_network(name), opset=17)
    outline, graph = read_outline(data), read(data)
    assert (outline.inputs, outline.outputs) == ((graph.input,), (graph.output,))
    assert outline.opset == graph.opset
    assert {node.kind for node in outline.nodes} == graph.operators
    manifest = build_manifest(data, classes=list("abcdefghij"), input={"height": 32, "width": 32})
    check_file(manifest, data)
    check_operators(manifest, data)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"input": {"height": SIDE, "width": 9}}, "input.width"),
        ({"input": {"height": 9, "width": SIDE}}, "input.height"),
        ({"input": {"height": SIDE, "width": SIDE, "channels": 1}}, "input.channels"),
        ({"input": {"height": SIDE, "width": SIDE, "layout": "nhwc"}}, "input.layout"),
        ({"classes": ["a", "b", "c"]}, "classes"),
    ],
)
def test_file_that_contradicts_the_manifest_is_refused(said: dict[str, Any], field: str) -> None:
    data = linear_onnx()
    with pytest.raises(InvalidModel) as refused:
        check_file(build_manifest(data, **said), data)
    assert refused.value.field == field


def test_open_sizes_other_formats_and_damaged_files_are_left_to_the_trial() -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    weights = {"w": np.zeros((192, 2), "f4")}
    open_file = onnx_file(nodes, weights, "y", shape=("c", "h", "w"))  # type: ignore[arg-type]
    for data in (open_file, linear_onnx()[:-9], linear_safetensors()):
        manifest = build_manifest(linear_onnx(), input={"height": SIDE, "width": SIDE})
        check_file(manifest, data)
        check_operators(manifest, data)


def test_unsupported_operator_is_refused_without_starting_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    data = strange_onnx()
    one = Trial(build_manifest(data), seconds=9, memory=2**30)
    monkeypatch.setattr(trial_child, "MODULE", "there_is_no_such_module")
    with pytest.raises(UnsupportedOperator, match=r"Strange \(domain 'com.example', opset 17, node 's'\)"):
        one.run(lambda: data, lambda _: None, threading.Semaphore())


def test_unsupported_operator_that_the_output_does_not_need_is_no_reason_to_refuse() -> None:
    data = strange_onnx(needed=False)
    check_operators(build_manifest(data), data)


def test_changed_file_raises_nothing_but_refusals() -> None:
    data, draw = linear_onnx(), np.random.default_rng(0)
    manifest = build_manifest(data)
    for _ in range(300):
        changed = bytearray(data)
        changed[draw.integers(len(data))] = draw.integers(256)
        try:
            check_file(manifest, bytes(changed))
            check_operators(manifest, bytes(changed))
        except (InvalidModel, UnsupportedOperator):
            continue
