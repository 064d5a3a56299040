"""One file against ONNX Runtime: logits, gradient, and an attack judged on the PNG."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from torch import Generator, Tensor, nn

import touchstone
from tools.exporters.record import GRADIENT_TOLERANCE
from touchstone.errors import InvalidModel
from touchstone.evaluation.library import Model

Array = npt.NDArray[Any]

MEAN, STD = 0.5, 0.25
RADII = (8 / 255, 0.25, 1.0)
"""Radii of the attack, in L∞: random networks differ in what moves them."""


@dataclass(frozen=True)
class Agreement:
    """How far a file's network is from ONNX Runtime.

    `logits` is the largest difference as a share of the largest logit, `gradient` that of derivatives along
    random directions from central differences, `radius` the one at which the attack succeeded, if it did.
    """

    logits: float
    gradient: float
    radius: float | None


def describe(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an exported file."""
    return {
        "id": "exported",
        "classes": [f"class {i}" for i in range(facts["classes"])],
        "input": {"height": facts["side"], "width": facts["side"], "layout": facts.get("layout", "nchw")},
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
    }


def sample_photo(side: int) -> Array:
    """Pixels (H, W, 3) of 8 bits: a smooth gradient of colors with noise."""
    draw = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side)
    image = np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, ramp[::-1, None] + 0 * ramp], 2)
    return (0.5 * image + draw.uniform(0, 127, image.shape)).astype(np.uint8)


@dataclass(frozen=True)
class Reference:
    """ONNX Runtime as the judge of a file."""

    session: onnxruntime.InferenceSession
    layout: str

    @classmethod
    def load(cls, path: Path, layout: str = "nchw") -> Reference:
        """The session of a file, which may have others beside it."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.intra_op_num_threads = 1
        return cls(
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), layout
        )

    def answer(self, pixels: Array) -> Array:
        """The output for pixels (H, W, 3), as a vector in float64."""
        entry = self.session.get_inputs()[0]
        x = ((pixels / 255 - MEAN) / STD).astype(np.float16 if "float16" in entry.type else np.float32)
        x = x if self.layout == "nhwc" else x.transpose(2, 0, 1)
        return np.asarray(self.session.run(None, {entry.name: x[None]})[0], np.float64).reshape(-1)


def load(path: Path, facts: Mapping[str, Any]) -> Model:
    """Touchstone's model of a file; its speed, which does not matter here, is not measured."""
    with patch("touchstone.engine.oracles.probe.measure_gradient_rates", return_value={1: 1.0}):
        return touchstone.load(path, manifest=describe(facts), device="cpu")


def compare(model: Model, reference: Reference, side: int) -> Agreement:
    """Compare a loaded file with ONNX Runtime on the same picture."""
    photo = sample_photo(side)
    return Agreement(
        compare_logits(model, reference.answer(photo), to_tensor(photo)),
        compare_gradient(model.oracle.module, to_tensor(photo)),
        find_radius(model, reference, photo),
    )


def to_tensor(pixels: Array) -> Tensor:
    """Pixels (H, W, 3) as images (1, 3, H, W) in [0,1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def compare_logits(model: Model, expected: Array, x: Tensor) -> float:
    """The largest difference as a share of the largest number, once what was removed at the end is undone."""
    with torch.no_grad():
        found = model.oracle.module(model.oracle.preprocessing.apply(x))[0].double().numpy()
    for step in model.manifest.output_activation if model.manifest else ():
        found = step.apply(found)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare_gradient(module: nn.Module, x: Tensor) -> float:
    """How far the gradient is from central differences along random directions, as a share of these.

    In double precision, except for a file that itself converts to half precision: there, only along the
    steepest direction does the change exceed the rounding.
    """
    x = (x - MEAN) / STD
    x = x + 1e-2 * torch.randn(x.shape, generator=Generator().manual_seed(1))  # off ties of whole numbers
    try:
        return _compare_gradient(
            copy.deepcopy(module).double(), x.double(), (1e-8, 1e-6, 1e-4), steepest=False
        )
    except InvalidModel:
        return _compare_gradient(module, x, (1e-3, 3e-3, 1e-2, 3e-2), steepest=True)


def _compare_gradient(module: nn.Module, x: Tensor, sizes: tuple[float, ...], *, steepest: bool) -> float:
    """The least difference over step sizes: rounding spoils short ones, kinks of the network long ones."""
    draw = Generator().manual_seed(0)
    leaf = x.clone().requires_grad_()
    logits = module(leaf)
    weights = torch.randn(logits.shape, generator=draw).to(x.dtype)
    [gradient] = torch.autograd.grad((logits * weights).sum(), leaf)
    signs = torch.randint(0, 2, (2, *x.shape[1:]), generator=draw).to(x.dtype) * 2 - 1
    signs = gradient.sign() if steepest else signs
    predicted = (gradient * signs).flatten(1).sum(1)
    errors = []
    for size in sizes:
        found = _central_differences(module, x, signs, weights, size)
        errors.append(float((found - predicted).norm() / found.norm()))
        if errors[-1] < GRADIENT_TOLERANCE / 100:
            break
    return min(errors)


def _central_differences(module: nn.Module, x: Tensor, signs: Tensor, weights: Tensor, size: float) -> Tensor:
    with torch.no_grad():
        before, after = (
            torch.stack([(module(x + step * sign) * weights).sum() for sign in signs[:, None]])
            for step in (-size, size)
        )
    return (after - before) / (2 * size)


def find_radius(model: Model, reference: Reference, photo: Array) -> float | None:
    """The radius at which PGD changes ONNX Runtime's label of the decoded PNG; None where none does."""
    before = reference.answer(photo).argmax()
    for radius in RADII:
        found = touchstone.attack(model, to_tensor(photo), method="pgd", eps=radius, steps=10)
        after = reference.answer(decode(encode(found.images[0]))).argmax()
        if found.success.item() != (after != before):
            return None
        if found.success.item():
            return radius
    return None


def encode(x: Tensor) -> bytes:
    """An image (3, H, W) in [0,1] as a PNG."""
    file = io.BytesIO()
    Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def decode(png: bytes) -> Array:
    """The pixels of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)))
