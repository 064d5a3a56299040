"""Files of old opsets: the answers of onnxruntime, of PyTorch at that time, or of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.errors import InvalidModel
from touchstone.models.onnx import build, operators, read
from touchstone.models.onnx.evaluation import fold_constants
from touchstone.models.onnx.reader import read_node, read_weights

assert operators  # importing it registered them

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 6, 6)).astype("f4")
THREE = RANDOM.uniform(0.5, 2, 3).astype("f4")
SIX = RANDOM.uniform(0.5, 2, 6).astype("f4")
SQUARE = RANDOM.standard_normal((6, 6)).astype("f4")
IMAGE = RANDOM.uniform(0.5, 2, (3, 6, 6)).astype("f4")


def build_model(*nodes: onnx.NodeProto, count: int, opset: int, **weights: Any) -> ModelProto:
    """From "x" over these nodes to "features", and to five logits."""
    rest, head = linear_head("features", count)
    rest[-1].input.append("bias")
    return build_onnx_model(
        *nodes, *rest, weights={**head, "bias": np.zeros(5, "f4"), **weights}, opset=opset
    )


def answer(model: ModelProto) -> Array:
    found: Array = build(read(model.SerializeToString())).module(torch.from_numpy(X)).numpy()
    return found


def run_onnxruntime(model: ModelProto, x: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {tensor.name for tensor in model.graph.initializer}
    [name] = [port.name for port in model.graph.input if port.name not in values]
    return np.asarray(session.run(None, {name: x})[0])


NORM = ["a", "b", "c", "d"]
OPSET_7_AND_8: list[tuple[str, int, dict[str, Any], dict[str, Array], int]] = [
    ("BatchNormalization", 7, {"spatial": 0}, dict.fromkeys(NORM, IMAGE), 108),
    ("BatchNormalization", 8, {}, dict.fromkeys(NORM, THREE), 108),
    ("Dropout", 7, {"ratio": 0.9}, {}, 108),
    ("Upsample", 8, {"scales": [1.0, 1.0, 2.0, 1.0], "mode": "linear"}, {}, 216),
    ("PRelu", 7, {}, {"slope": THREE.reshape(3, 1, 1)}, 108),
    ("Max", 8, {}, {"a": SIX}, 108),
    ("TopK", 8, {"k": 2, "axis": 1}, {}, 72),
    ("ImageScaler", 7, {"scale": 2.0, "bias": [1.0, 2.0, 3.0]}, {}, 108),
    ("Clip", 8, {"min": -0.5}, {}, 108),
]


@pytest.mark.parametrize(("kind", "opset", "attributes", "weights", "count"), OPSET_7_AND_8)
def test_old_operator_answers_like_onnxruntime(
    kind: str, opset: int, attributes: dict[str, Any], weights: dict[str, Array], count: int
) -> None:
    outputs = ["features", "indices"] if kind == "TopK" else ["features"]
    node = helper.make_node(kind, ["x", *weights], outputs, **attributes)
    model = build_model(node, count=count, opset=opset, **weights)
    np.testing.assert_allclose(answer(model), run_onnxruntime(model, X), rtol=1e-4, atol=1e-5)


def grow(x: Array) -> Array:
    return x.repeat(2, 2)


OLDER: dict[str, tuple[list[onnx.NodeProto], Callable[[], Array]]] = {
    # nodes of opset 1 from x to features, and what they compute
    "sum from an axis on": (
        [helper.make_node("Add", ["x", "three"], ["features"], broadcast=1, axis=1)],
        lambda: X + THREE[:, None, None],
    ),
    "product with the last axes": (
        [helper.make_node("Mul", ["x", "six"], ["features"], broadcast=1, consumed_inputs=[0, 0])],
        lambda: X * SIX,
    ),
    "quotient from a negative axis on": (
        [helper.make_node("Div", ["x", "six"], ["features"], broadcast=1, axis=-2)],
        lambda: X / SIX[:, None],
    ),
    "product of matrices and a sum that is no bias": (
        [
            helper.make_node("MatMul", ["x", "square"], ["m"]),
            helper.make_node("Add", ["m", "six"], ["features"], broadcast=1, axis=2),
        ],
        lambda: X @ SQUARE + SIX[:, None],
    ),
    "statistics of training": (
        [helper.make_node("BatchNormalization", ["x", *["three"] * 4], ["features"], is_test=1)],
        lambda: (
            (X - THREE[:, None, None]) / np.sqrt(THREE + 1e-5)[:, None, None] * THREE[:, None, None]
            + THREE[:, None, None]
        ),
    ),
    "dropout after training": ([helper.make_node("Dropout", ["x"], ["features"], is_test=1)], lambda: X),
    "shape as an attribute": (
        [
            helper.make_node("Reshape", ["x"], ["rows"], shape=[0, -1, 6]),
            helper.make_node("Concat", ["rows", "rows"], ["features"]),
        ],
        lambda: np.concatenate([X.reshape(2, 18, 6)] * 2, 1),
    ),
    "types by name": (
        [
            helper.make_node("Cast", ["x"], ["whole"], to="INT32"),
            helper.make_node("Cast", ["whole"], ["back"], to="FLOAT"),
            helper.make_node("Add", ["back", "x"], ["features"]),
        ],
        lambda: X.astype("i4") + X,
    ),
    "margins": (
        [helper.make_node("Pad", ["x"], ["features"], paddings=[0, 0, 1, 0, 0, 0, 0, 2], value=3.0)],
        lambda: np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=3),
    ),
    "tiles along an axis": (
        [helper.make_node("Tile", ["x", "two", "two"], ["features"])],
        lambda: np.tile(X, (1, 1, 2, 1)),
    ),
    "scales of two sides": (
        [helper.make_node("Upsample", ["x"], ["features"], height_scale=2.0, width_scale=1.0)],
        lambda: grow(X),
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_form_of_the_first_opsets_computes_what_it_says(name: str) -> None:
    nodes, compute = OLDER[name]
    features = compute().reshape(2, -1)
    weights = {"three": THREE, "six": SIX, "square": SQUARE, "two": np.array(2)}
    model = build_model(*nodes, count=features.shape[1], opset=1, **weights)
    head = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(answer(model), features @ head, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (helper.make_node("Dropout", ["x"], ["features"]), "answer at random"),
        (helper.make_node("BatchNormalization", ["x", *["three"] * 4], ["features"]), "training mode"),
        (helper.make_node("Add", ["x", "three"], ["features"]), "without broadcast"),
        (helper.make_node("Add", ["x", "six"], ["features"], broadcast=1, axis=9), "cannot be computed"),
        (helper.make_node("Add", ["x", "image"], ["features"], broadcast=1, axis=2), "from axis 2 on"),
    ],
)
def test_old_form_that_has_no_meaning_is_refused(node: onnx.NodeProto, says: str) -> None:
    model = build_model(node, count=108, opset=6, three=THREE, six=SIX, image=IMAGE)
    with pytest.raises(InvalidModel, match=says):
        build(read(model.SerializeToString()))


def read_tensors(folder: Path, kind: str) -> list[Array]:
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.partition("_")[2]))
    return [numpy_helper.to_array(TensorProto.FromString(file.read_bytes())) for file in files]


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator"])
def test_files_that_pytorch_exported_to_opset_6_give_its_outputs(kind: str) -> None:
    cases = load_model_tests(kind=kind)
    assert len(cases) > 30
    for case in cases:
        assert case.model_dir is not None
        model = onnx.load(str(Path(case.model_dir) / "model.onnx"))
        for folder in Path(case.model_dir).glob("test_data_set_*"):
            known = {name: torch.from_numpy(value) for name, value in read_weights(model.graph).items()}
            ports = [port.name for port in model.graph.input if port.name not in known]
            inputs = map(torch.tensor, read_tensors(folder, "input"))
            known |= dict(zip(ports, inputs, strict=True))
            nodes = list(map(read_node, model.graph.node))
            assert fold_constants(nodes, model.opset_import[0].version, known) == []
            for port, expected in zip(model.graph.output, read_tensors(folder, "output"), strict=True):
                np.testing.assert_allclose(
                    known[port.name], expected, rtol=1e-3, atol=1e-5, err_msg=case.name
                )


def squeezenet(opset: int) -> ModelProto:
    """SqueezeNet as Caffe2 exported it, for small images, with weights in place of ONNX's fillers."""
    model = onnx.load(str(Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"))
    graph, values = model.graph, read_weights(model.graph)
    fillers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in fillers:
        shape = values[node.input[0]]
        value = RANDOM.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        graph.initializer.append(numpy_helper.from_array(value.astype("f4"), node.output[0]))
        graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape.tolist()))
        graph.node.remove(node)
    [image] = [port for port in graph.input if port.name == "data_0"]
    for dim in image.type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize("opset", [7, 8])
def test_classic_network_with_its_weights_among_the_inputs_answers_like_onnxruntime(opset: int) -> None:
    model = squeezenet(opset)
    x = RANDOM.random((1, 3, 64, 64)).astype("f4")
    imported = build(read(model.SerializeToString()))
    assert [step.function for step in imported.activation] == ["softmax"]
    probabilities = torch.softmax(imported.module(torch.from_numpy(x)), 1).numpy()
    np.testing.assert_allclose(
        probabilities, run_onnxruntime(model, x).reshape(1, 1000), rtol=1e-3, atol=1e-7
    )
