"""Ends of networks that hide gradients: found, taken away, and shown as the network answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from PIL import Image
from torch import Tensor

import touchstone
from api_tests.support.network_ends import CNN, FIELDS, export_with_end, run_onnx
from api_tests.support.onnx_networks import build_onnx_model, linear_head
from touchstone.engine import Engine
from touchstone.evaluation.library import Model
from touchstone.evaluation.run import run_job
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.models.onnx import build, read
from touchstone.models.output_activation import ActivationStep, compute_confidences, restore_logits
from touchstone.models.output_end import is_saturated
from touchstone.models.store import SingleFileStore

METHODS = ("pgd", "mifgsm", "apgd")


def softmax_by_hand(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(1, keepdim=True)


ENDS: Mapping[str, tuple[Callable[[Tensor], Tensor], list[tuple[str, str]]]] = MappingProxyType(
    {
        "sigmoid": (torch.sigmoid, [("sigmoid", "removed")]),
        "sigmoid by hand": (lambda z: 1 / (1 + (-z).exp()), [("sigmoid", "inverted")]),
        "softmax of softmax": (lambda z: z.softmax(1).softmax(1), [("softmax", "removed")] * 2),
        "softmax of softmax by hand": (
            lambda z: softmax_by_hand(softmax_by_hand(z)),
            [("softmax", "inverted")] * 2,
        ),
        "low temperature": (lambda z: (z / 0.01).softmax(1), [("affine", "removed"), ("softmax", "removed")]),
    }
)


def load(data: bytes, folder: Path, **fields: Any) -> Model:
    (folder / "net.onnx").write_bytes(data)
    return touchstone.load(folder / "net.onnx", manifest={**FIELDS, **fields}, device="cpu")


def count_successes(model: Model, x: Tensor) -> list[int]:
    found = [
        touchstone.attack(model, x, method=one, norm="linf", eps="8/255") for one in ("pgd", "mifgsm", "apgd")
    ]
    return [int(one.success.sum()) for one in found]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return touchstone.samples()[[0, 2, 3]]


@pytest.fixture(scope="module")
def plain_successes(images: Tensor) -> list[int]:
    return count_successes(touchstone.load(CNN.id, device="cpu"), images)


@pytest.mark.parametrize("name", ENDS)
def test_attacks_succeed_whatever_stands_at_the_end(
    name: str, images: Tensor, plain_successes: list[int], tmp_path: Path
) -> None:
    end, handled = ENDS[name]
    data = export_with_end(end)
    model = load(data, tmp_path)
    assert model.manifest is not None
    assert [(one.function, one.handling) for one in model.manifest.output_activation] == handled
    assert count_successes(model, images) == plain_successes
    confidences = model.manifest.confidences(model.oracle.module((images - CNN.mean[0]) / CNN.std[0]).numpy())
    assert np.abs(confidences - run_onnx(data, images)).max() < 1e-4


def test_percentages_are_shown_as_shares(images: Tensor, tmp_path: Path) -> None:
    for end in (lambda z: 100 * z.softmax(1), lambda z: z.exp() * 100 / z.exp().sum(1, keepdim=True)):
        data = export_with_end(end)
        model = load(data, tmp_path)
        assert model.manifest is not None
        logits = model.oracle.module((images - CNN.mean[0]) / CNN.std[0])
        assert np.abs(100 * model.manifest.confidences(logits.numpy()) - run_onnx(data, images)).max() < 1e-2


def node(operator: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, ["y"], **attributes)


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (node("HardSigmoid", "z", alpha=0.1, beta=0.4), [("hard-sigmoid", (0.1, 0.4))]),
        (node("Tanh", "z"), [("tanh", (None, None))]),
        (node("Relu", "z"), [("clip", (0.0, None))]),
        (node("Clip", "z", "", "one"), [("clip", (None, 1.0))]),
        (node("Min", "one", "z"), [("clip", (None, 1.0))]),
        (node("Max", "z", "one"), [("clip", (1.0, None))]),
        (node("Mul", "two", "z"), [("affine", (2.0, 0.0))]),
        (node("Div", "z", "two"), [("affine", (0.5, 0.0))]),
        (node("Sub", "z", "two"), [("affine", (1.0, -2.0))]),
        (node("LogSoftmax", "z"), [("log-softmax", (None, None))]),
        (node("Sub", "two", "z"), []),
        (node("Div", "two", "z"), []),
        (node("Mul", "z", "minus"), []),
        (node("Mul", "z", "five"), []),
        (node("Softmax", "z", axis=0), []),
        (node("Exp", "z"), []),
        (node("Clip", "z", "two", "one"), []),
        (node("HardSigmoid", "z", alpha=float("nan")), []),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)
def test_only_ends_that_keep_the_order_of_outputs_are_removed(end: Any, found: Any) -> None:
    nodes, weights = linear_head("x", 108)
    nodes[-1].output[0] = "z"
    weights |= {"one": np.float32(1), "two": np.float32(2), "minus": np.float32(-1)}
    weights |= {"five": np.arange(1, 6, dtype="f4")}
    graph = read(build_onnx_model(*nodes, end, weights=weights).SerializeToString())
    assert [(one.function, pytest.approx(one.parameters)) for one in build(graph).activation] == found


def steps(*functions: Any) -> list[ActivationStep]:
    return [ActivationStep(function=name, parameters=numbers) for name, numbers in functions]


NOTHING = (None, None)


def test_confidences_are_the_outputs_where_these_lie_between_zero_and_one() -> None:
    z = torch.tensor([[3.0, -1.0, 0.5]], dtype=torch.float64)
    clipped = steps(("affine", (0.5, 0.0)), ("clip", (0.0, 1.0)))
    expected = {
        (z * 0.5).clamp(0, 1): clipped,
        (z.tanh() + 1) / 2: steps(("tanh", NOTHING), ("affine", (0.5, 0.5))),
        z.sigmoid(): steps(("sigmoid", NOTHING), ("log", NOTHING)),
        z.softmax(1): steps(("log-softmax", NOTHING)),
        (2 * z + 1).softmax(1): steps(("affine", (2.0, 1.0))),
        z.clamp(0, 2).softmax(1): steps(("clip", (0.0, 2.0))),
    }
    for confidences, found in expected.items():
        assert compute_confidences(z.numpy(), found, single=False) == pytest.approx(confidences.numpy())


def test_logits_of_inference_keep_the_scale_of_the_network() -> None:
    z = np.array([[3.0, -1.0]], dtype="f4")
    scaled = steps(("affine", (100.0, 2.0)), ("softmax", NOTHING), ("affine", (100.0, 0.0)))
    assert restore_logits(z, scaled).tolist() == [[302.0, -98.0]]


def test_job_shows_the_confidences_that_the_network_answers(images: Tensor, tmp_path: Path) -> None:
    data = export_with_end(torch.sigmoid)
    manifest = load(data, tmp_path).manifest
    assert manifest is not None
    pixels = (images[0, 0] * 255).round().to(torch.uint8).numpy()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    submission = Submission(
        kind="prediction",
        method="predict",
        model=ModelRef(id=manifest.id, digest=manifest.digest),
        image=ImageRef(digest=manifest.digest, width=28, height=28, channels=1),
        parameters={"top": 10},
    )
    engine = Engine("cpu", store=SingleFileStore(manifest, data))
    try:
        top = run_job(submission, png.getvalue(), engine).result["original"]["top"]
    finally:
        engine.stop()
    shown = np.zeros(10)
    shown[[one["label"] for one in top]] = [one["confidence"] for one in top]
    assert np.abs(shown - run_onnx(data, images[:1])[0]).max() < 1e-4


def test_confidences_that_are_rounded_to_one_are_a_saturated_output(images: Tensor, tmp_path: Path) -> None:
    x = (images - CNN.mean[0]) / CNN.std[0]
    hidden = load(export_with_end(lambda z: 1 / (1 + (-5 * z).exp())), tmp_path).oracle.module
    assert is_saturated(hidden(x))
    assert is_saturated(torch.sigmoid(5 * touchstone.load(CNN.id, device="cpu").oracle.module(x)))
    assert not is_saturated(touchstone.load(CNN.id, device="cpu").oracle.module(x))
