"""Networks with several outputs, and with one for two classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, load_model_from_string

import touchstone
from api_tests.support.linear_models import gray_images
from api_tests.support.own_models import REGISTRATION_FIELDS, build_manifest, linear_onnx
from touchstone.errors import InvalidModel, InvalidParameter
from touchstone.evaluation.library import Model
from touchstone.registration.examination import complete_manifest
from touchstone.registration.request import Registration, describe_model


def add_outputs(data: bytes, *outputs: tuple[str, list[int | str]]) -> bytes:
    """The file with these values as further outputs."""
    model = load_model_from_string(data)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs
    )
    return bytes(model.SerializeToString())


def load(data: bytes, folder: Path, **fields: Any) -> Model:
    (folder / "net.onnx").write_bytes(data)
    return touchstone.load(folder / "net.onnx", manifest={**REGISTRATION_FIELDS, **fields}, device="cpu")


def run_onnx(data: bytes, x: torch.Tensor) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(data).run(None, {"x": x.numpy()})[0])


EMBEDDING = ("flat", ["n", 192])


def test_output_with_a_number_for_each_class_is_the_classifier() -> None:
    data = add_outputs(linear_onnx(), EMBEDDING)
    assert complete_manifest(build_manifest(data), data).parameters == 2 * 192 + 2


def test_outputs_of_one_shape_are_listed_unless_one_is_named() -> None:
    data = add_outputs(linear_onnx(end="Softmax"), ("logits", ["n", 2]), EMBEDDING)
    with pytest.raises(InvalidModel, match=r"'p' \(any, 2\), 'logits' \(any, 2\), 'flat'") as refused:
        complete_manifest(build_manifest(data), data)
    assert refused.value.field == "output"
    with pytest.raises(InvalidModel, match="no output 'z'"):
        complete_manifest(build_manifest(data, output="z"), data)
    for name, softmax in (("p", "removed"), ("logits", "none")):
        manifest = complete_manifest(build_manifest(data, output=name), data)
        assert (manifest.output, manifest.softmax) == (name, softmax)


def test_output_is_named_only_of_onnx_files() -> None:
    fields = {**REGISTRATION_FIELDS, "output": "y", "architecture": "small-cnn"}
    with pytest.raises(InvalidParameter, match="only an ONNX file") as refused:
        Registration.parse(fields).build_manifest("sha256:" + "0" * 64, "safetensors")
    assert refused.value.field == "output"


@pytest.mark.parametrize("end", ["", "Sigmoid", "HardSigmoid", "Tanh"])
def test_single_output_becomes_a_pair_of_classes(end: str, tmp_path: Path) -> None:
    data, x = linear_onnx(classes=1, end=end), gray_images(16)
    model = load(data, tmp_path)
    assert model.manifest is not None
    assert model.manifest.single_output
    logits, answers = model.oracle.module(x), run_onnx(data, x)
    threshold = 0.5 if "Sigmoid" in end else 0.0
    assert np.array_equal(logits.argmax(1).numpy(), (answers[:, 0] > threshold).astype(int))
    assert 0 < logits.argmax(1).sum() < 16
    expected = answers if threshold else 1 / (1 + np.exp(-answers))
    shown = model.manifest.confidences(logits.numpy())
    assert shown == pytest.approx(np.concatenate([1 - expected, expected], 1), abs=1e-5)


def test_single_output_of_rank_one_is_attacked(tmp_path: Path) -> None:
    model = load_model_from_string(linear_onnx(classes=1, end="Sigmoid"))
    model.graph.node.append(helper.make_node("Flatten", ["p"], ["row"], axis=0))
    model.graph.node.append(helper.make_node("Reshape", ["row", "shape"], ["y"]))
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [-1]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]))
    found = load(model.SerializeToString(), tmp_path)
    assert touchstone.attack(found, gray_images(4), norm="linf", eps="32/255", steps=10).success.all()


def test_single_output_for_three_classes_is_refused() -> None:
    data = linear_onnx(classes=1)
    registration = Registration.parse({**REGISTRATION_FIELDS, "classes": ["a", "b", "c"]})
    with pytest.raises(InvalidModel, match="answers 1 numbers, but 3 classes"):
        complete_manifest(describe_model(registration, data, limit=2**20), data)
