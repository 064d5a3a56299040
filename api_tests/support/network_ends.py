"""The zoo's network for Fashion-MNIST as ONNX files whose ends differ."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from touchstone.models import zoo
from touchstone.models.loader import load_plain

CNN = zoo.find_manifest("fashion-mnist-cnn")
FIELDS: Mapping[str, Any] = {
    "id": "ended",
    "classes": CNN.classes,
    "input": {"height": 28, "width": 28, "channels": 1},
    "mean": CNN.mean,
    "std": CNN.std,
}


class EndedNetwork(nn.Module):
    """The network, and a function of its logits."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.end = load_plain(CNN), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


def export_with_end(end: Callable[[Tensor], Any]) -> bytes:
    """The network with this function of its logits as an ONNX file."""
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(EndedNetwork(end).eval(), (torch.zeros(2, 1, 28, 28),), file),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )
    return file.getvalue()


def run_onnx(data: bytes, x: Tensor) -> NDArray[np.float32]:
    """What ONNX Runtime answers to images in [0,1]."""
    inputs = {"x": ((x - CNN.mean[0]) / CNN.std[0]).numpy()}
    return np.asarray(onnxruntime.InferenceSession(data).run(None, inputs)[0])
