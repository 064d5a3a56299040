"""Small networks of every style of classifier, and their ONNX files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, k, stride, k // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv(outputs, outputs, 3)
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x), inplace=True)


def resnet(width: int = 8) -> nn.Module:
    """A narrow ResNet-18."""
    sizes = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
    return nn.Sequential(
        *(*conv(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        *(BasicBlock(width * a, width * b, stride) for a, b, stride in sizes),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)),
    )


class InvertedResidual(nn.Module):
    """The block of MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        wide = 4 * inputs
        self.body = nn.Sequential(
            *(*conv(inputs, wide, 1), nn.ReLU6(inplace=True)),
            *(*conv(wide, wide, 3, stride, groups=wide), nn.ReLU6(inplace=True)),
            *conv(wide, outputs, 1),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet() -> nn.Module:
    """A short MobileNetV2 with the head of a MobileNetV3."""
    return nn.Sequential(
        *(*conv(3, 16, 3, 2), nn.ReLU6(inplace=True)),
        *(
            InvertedResidual(16, 16),
            InvertedResidual(16, 24, 2),
            InvertedResidual(24, 24),
            InvertedResidual(24, 24),
        ),
        *(nn.Conv2d(24, 64, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)),
        nn.Linear(64, 10),
    )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """The block of ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.rest = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * self.rest(self.conv(x).permute(0, 2, 3, 1))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """A short ConvNeXt."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 4), ChannelNorm(16), ConvNeXtBlock(16), ConvNeXtBlock(16)),
        *(ChannelNorm(16), nn.Conv2d(16, 32, 2, 2), ConvNeXtBlock(32)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10)),
    )


class Attention(nn.Module):
    """Attention of several heads, each token to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class EncoderBlock(nn.Module):
    """The block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.rest(x)


class ViT(nn.Module):
    """A small vision transformer for images of 32x32."""

    def __init__(self, width: int = 24, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.positions
        return self.head(self.norm(self.blocks(y))[:, 0])


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(width, width // 4, 1), nn.SiLU(), nn.Conv2d(width // 4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


def efficientnet() -> nn.Module:
    """Layers as in an EfficientNet, a few rarer ones, and TensorFlow's uneven padding."""
    return nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.SiLU()),
        *(*conv(16, 16, 3, groups=16), nn.SiLU(), SqueezeExcitation(16), *conv(16, 24, 1)),
        *(nn.GroupNorm(4, 24), nn.Mish(), nn.AvgPool2d(3, 2, 1), nn.PReLU(24), nn.InstanceNorm2d(24)),
        *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(24, 24, 3, padding=2, dilation=2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "vit": ViT,
    "efficientnet": efficientnet,
}

SIDE = 32


def build_network(name: str) -> nn.Module:
    """A network with seeded weights and statistics other than the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETWORKS[name]()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.2)
    return net.eval().requires_grad_(False)


def export_onnx(
    net: nn.Module, *, opset: int, dynamic: bool = True, dynamo: bool = False, side: int = SIDE
) -> bytes:
    """The network as an ONNX file, written by one of PyTorch's exporters."""
    x = torch.randn(2 if dynamic else 1, 3, side, side)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn that they are deprecated
        if dynamo:
            shapes: Any = ({0: "n"},) if dynamic else None
            program = torch.onnx.export(
                net, (x,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            return program.model_proto.SerializeToString()
        file = io.BytesIO()
        axes = {"x": {0: "n"}, "y": {0: "n"}} if dynamic else None
        torch.onnx.export(
            *(net, (x,), file),
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return file.getvalue()


def build_onnx_model(
    *nodes: onnx.NodeProto,
    weights: Mapping[str, Any] | None = None,
    shape: tuple[int | str, ...] = ("n", 3, 6, 6),
    output: tuple[int | str, ...] = ("n", 5),
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A file of these nodes from "x" to "y"."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, output)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def linear_head(features: str, count: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Five logits out of any features that have `count` numbers an image."""
    weight = np.random.default_rng(0).standard_normal((count, 5)).astype("f4") / count**0.5
    nodes = [
        helper.make_node("Flatten", [features], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["y"]),
    ]
    return nodes, {"head": weight}
