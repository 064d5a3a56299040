"""Quantized networks: what ONNX Runtime answers, as black boxes or with gradients past the rounding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor, nn
from torch.nn import functional

import touchstone
from api_tests.support.onnx_networks import build_onnx_model, export_onnx
from api_tests.support.own_models import build_manifest, linear_onnx, linear_safetensors
from touchstone.errors import GradientRefused, InvalidModel, InvalidParameter
from touchstone.methods import find
from touchstone.methods.compatibility import check_compatible
from touchstone.models.onnx import build, read
from touchstone.registration.examination import complete_manifest, probe_model

SIDE = 16
FIELDS: dict[str, Any] = {"id": "q", "classes": list("abcde"), "input": {"height": SIDE, "width": SIDE}}


class SmallNetwork(nn.Module):
    """Convolutions, a pooling, a sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.third, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.first(x).relu(), 2)
        y = self.second(x).relu()
        y = y + self.third(y).relu()
        return self.last(y.flatten(1))


class Calibration(CalibrationDataReader):
    """A few batches of noise."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.batches: Iterator[dict[str, Any]] = iter(
            [{"x": draw.random((8, 3, SIDE, SIDE), dtype=np.float32) ** power} for power in (0.3, 1, 3)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One network in ONNX Runtime's three forms, and as it was."""
    logging.getLogger().setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("quantized")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNetwork().eval()
    (folder / "float.onnx").write_bytes(export_onnx(net, opset=17, side=SIDE))
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(
            *(folder / "float.onnx", folder / f"{form}.onnx", Calibration()),
            quant_format=form,
            per_channel=form is QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # or ONNX Runtime saturates sums of products on processors without VNNI
        )
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx", weight_type=QuantType.QUInt8)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


FORMS = ["QDQ", "QOperator", "dynamic"]


def images(rows: int = 6) -> Tensor:
    return torch.rand(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def run_onnx(data: bytes, x: Tensor) -> np.ndarray:
    """What ONNX Runtime answers to each image alone."""
    session = onnxruntime.InferenceSession(data)
    return np.concatenate([session.run(None, {"x": row[None].numpy()})[0] for row in x])


@pytest.mark.parametrize("form", FORMS)
def test_quantized_network_answers_like_onnxruntime(quantized: dict[str, bytes], form: str) -> None:
    imported = build(read(quantized[form]))
    assert imported.quantized
    assert imported.module(images()).numpy() == pytest.approx(run_onnx(quantized[form], images()), abs=1e-6)


def integer_case(name: str) -> tuple[bytes, Tensor]:
    """One operator on integers, whose result is shown as floats, and images for it."""
    draw = np.random.default_rng(0)
    matrices = "MatMul" in name
    weights = {
        **{"xs": np.float32(0.02), "ws": np.float32(0.01), "ys": np.float32(0.013)},
        **{"xz": np.int8(3), "wz": np.int8(0), "yz": np.int8(-2), "rows": np.array([0, -1])},
        "w": draw.integers(-100, 100, (12, 5) if matrices else (5, 3, 2, 2), dtype=np.int8),
    }
    source = "f" if matrices else "q"
    if name.endswith("Integer"):
        inputs, show = [source, "w", "xz"], helper.make_node("Cast", ["i"], ["y"], to=1)
    else:
        inputs = [source, "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        show = helper.make_node("DequantizeLinear", ["i", "ys", "yz"], ["y"])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        *([helper.make_node("Reshape", ["q", "rows"], ["f"])] if matrices else []),
        helper.make_node(name, inputs, ["i"]),
        show,
    ]
    model = build_onnx_model(*nodes, weights=weights, shape=("n", 3, 2, 2))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    noise = torch.rand(64, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return model.SerializeToString(), 4 * noise - 2


@pytest.mark.parametrize("name", ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"])
def test_integers_are_those_of_onnxruntime(name: str) -> None:
    data, x = integer_case(name)
    assert np.array_equal(build(read(data)).module(x).numpy(), run_onnx(data, x).reshape(64, -1))


@pytest.mark.parametrize(("form", "least"), [("QDQ", 0.95), ("QOperator", 0.95), ("dynamic", 0.95)])
def test_gradients_pass_the_rounding_only_where_the_manifest_says_so(
    quantized: dict[str, bytes], form: str, least: float
) -> None:
    def gradient(name: str, **options: bool) -> Tensor:
        x = images().requires_grad_()
        [found] = torch.autograd.grad(build(read(quantized[name]), **options).module(x)[:, 0].sum(), x)
        return found.flatten(1)

    assert not gradient(form).any()
    passed = gradient(form, straight_through=True)
    rows = passed.any(1)  # where the output is at the end of its range, there is none
    assert rows.sum() > 2
    likeness = functional.cosine_similarity(passed, gradient("float"))[rows]
    assert float(likeness.min()) > least
    x = images()
    through = build(read(quantized[form]), straight_through=True).module
    assert torch.equal(through(x), build(read(quantized[form])).module(x))


def test_quantized_model_is_a_black_box(quantized: dict[str, bytes], tmp_path: Path) -> None:
    data = quantized["QOperator"]
    manifest = build_manifest(data, **FIELDS)
    result = probe_model(manifest, data, lambda _: None)
    assert result.complete_manifest(manifest).gradients == "none"
    assert not result.probe.gradient_agrees
    (tmp_path / "q.onnx").write_bytes(data)
    model = touchstone.load(tmp_path / "q.onnx", manifest=FIELDS, device="cpu")
    assert model.manifest is not None
    with pytest.raises(GradientRefused, match=r"q is a quantized model.*pgd needs them.*straight_through"):
        check_compatible(find("pgd", "attack").parse({"norm": "linf", "eps": 0.1}), model.manifest)
    with pytest.raises(GradientRefused):
        touchstone.attack(model, images(1), norm="linf", eps=0.1)
    for method, fields in (("square", {"norm": "linf", "eps": 0.1}), ("hopskipjump", {"norm": "l2"})):
        check_compatible(find(method, "attack").parse(fields), model.manifest)
    found = touchstone.attack(model, images(2), method="square", norm="linf", eps="64/255", queries=300)
    assert found.success.any()
    check_compatible(find("smoothing", "certificate").parse({}), model.manifest)
    assert touchstone.certify(model, images(1), n=100, n0=10, sigma=0.1).n_used > 0


def test_straight_through_makes_a_quantized_model_a_white_box(
    quantized: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "q.onnx").write_bytes(quantized["QDQ"])
    fields = {**FIELDS, "input": {**FIELDS["input"], "straight_through": True}}
    model = touchstone.load(tmp_path / "q.onnx", manifest=fields, device="cpu")
    assert model.manifest is not None
    assert model.manifest.gradients == "straight-through"
    found = touchstone.attack(model, images(), norm="linf", eps="32/255", steps=20)
    assert int(found.success.sum()) >= 3


def test_straight_through_is_refused_where_nothing_is_quantized() -> None:
    data = linear_onnx()
    manifest = build_manifest(data, input={"height": 8, "width": 8, "straight_through": True})
    with pytest.raises(InvalidModel, match="not quantized") as refused:
        complete_manifest(manifest, data)
    assert refused.value.field == "input.straight_through"
    with pytest.raises(InvalidParameter, match="only an ONNX file"):
        build_manifest(
            linear_safetensors(),
            input={"height": 8, "width": 8, "straight_through": True},
            architecture="small-cnn",
        )
