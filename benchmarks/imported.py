"""The gradient step of networks that went through an ONNX file, beside that of the originals."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks import LITE0
from benchmarks.record import save, time_interleaved
from touchstone.models.loader import load_plain
from touchstone.models.onnx import build, read
from touchstone.models.zoo import find_manifest


class ResidualBlock(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.a_norm, self.b_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.a_norm(self.a(x)), inplace=True)
        return functional.relu(self.b_norm(self.b(y)) + self.short(x), inplace=True)


def build_resnet() -> nn.Module:
    """ResNet-18 with its weights as they are born."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    widths += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *(ResidualBlock(*one) for one in widths), *head)


def build_transformer(width: int = 192, depth: int = 6, patch: int = 16) -> nn.Module:
    """The encoder of a ViT-Ti, half as deep, over convolved patches; logits from the mean token."""
    layer = nn.TransformerEncoderLayer(
        width, 3, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    return nn.Sequential(nn.Conv2d(3, width, patch, patch), Tokens(), encoder, Mean(), nn.Linear(width, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lite0": lambda: load_plain(find_manifest(LITE0)),
    "resnet18": build_resnet,
    "transformer": build_transformer,
}


def export_and_import(net: nn.Module, side: int = 224) -> nn.Module:
    """The network exported and imported again."""
    file, x = io.BytesIO(), torch.rand(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), file, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "n"}}, input_names=["x"]
        )
    return build(read(file.getvalue())).module


def gradient_sign(net: nn.Module, x: Tensor) -> Tensor:
    """The sign of the gradient, as an attack takes it."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        functional.cross_entropy(net(x), torch.zeros(len(x), dtype=torch.long)), x
    )
    return gradient.sign()


def measure_network(name: str, rows: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both, and how much faster the imported one is."""
    torch.manual_seed(0)
    net = NETWORKS[name]().eval().requires_grad_(False)
    imported, x = export_and_import(net), torch.rand(rows, 3, 224, 224)
    seconds = time_interleaved(
        {"torch": lambda: gradient_sign(net, x), "imported": lambda: gradient_sign(imported, x)},
        rounds=rounds,
    )
    return {
        **{f"{who}_ms": round(1000 * value, 1) for who, value in seconds.items()},
        "ratio": round(seconds["torch"] / seconds["imported"], 2),
    }


def main(rounds: int = 9) -> None:
    """All networks, one image and eight at a time."""
    figures = {
        f"{name}, {rows} rows": measure_network(name, rows, rounds) for name in NETWORKS for rows in (1, 8)
    }
    save("imported", figures)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
