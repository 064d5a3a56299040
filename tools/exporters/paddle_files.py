"""What paddle2onnx writes. Runs in the environment with PaddlePaddle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec
from paddle.vision import models

from tools.exporters.protocol import Export, Facts, serve

PACKAGES = ("paddlepaddle", "paddle2onnx")
CLASSES = 10

Network = Callable[[], nn.Layer]


def make(build: Network) -> nn.Layer:
    """A network in eval mode: nothing in it is constant, and its batch norm has the statistics of noise."""
    paddle.seed(0)
    net = build()
    net.eval()
    norms = [layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    with paddle.no_grad():
        for weight in net.parameters():
            if float(weight.max() - weight.min()) == 0:
                weight.set_value(weight + 0.1 * paddle.randn(weight.shape))
        for norm in norms:
            norm._momentum = 0.0
            norm.train()
        net(paddle.randn([8, 3, 64, 64]))
        net.eval()
        _spread_logits(net)
    return net


def _spread_logits(net: nn.Layer) -> None:
    """Scale and shift the last layer so that the image decides the label, not the bias."""
    head = [layer for layer in net.sublayers() if isinstance(layer, nn.Linear)][-1]
    seen: list[paddle.Tensor] = []
    hook = head.register_forward_post_hook(lambda _layer, _inputs, logits: seen.append(logits))
    net(paddle.randn([8, 3, 64, 64]))
    hook.remove()
    scale = seen[0].std(0).mean()
    head.weight.set_value(head.weight / scale)
    head.bias.set_value((head.bias - seen[0].mean(0)) / scale)


def convolutional() -> nn.Layer:
    """A small network of blocks of MobileNet."""
    return nn.Sequential(
        *(
            nn.Conv2D(3, 8, 3, 2, 1, bias_attr=False),
            nn.BatchNorm2D(8),
            nn.Hardswish(),
            nn.MaxPool2D(3, 2, 1),
        ),
        *(nn.Conv2D(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2D(8), nn.ReLU6(), nn.Conv2D(8, 12, 1), nn.Swish()),
        *(
            nn.Conv2D(12, 12, 1),
            nn.GELU(),
            nn.GroupNorm(3, 12),
            nn.Hardsigmoid(),
            nn.AvgPool2D(2),
        ),
        *(nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, CLASSES), nn.Softmax()),
    )


class Attention(nn.Layer):
    """A transformer of one layer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2D(3, 8, 16, 16)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", normalize_before=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Logits."""
        tokens = self.patches(x).flatten(2).transpose([0, 2, 1])
        return self.head(self.norm(self.encoder(tokens)).mean(1))


NETWORKS: dict[str, Network] = {
    "convolutional": convolutional,
    "attention": Attention,
    **{
        name: partial(getattr(models, name), num_classes=CLASSES)
        for name in (
            *("resnet18", "resnext50_32x4d", "densenet121", "shufflenet_v2_x0_25", "mobilenet_v3_small"),
        )
    },
    "mobilenet_v1": partial(models.mobilenet_v1, num_classes=CLASSES, scale=0.25),
    "mobilenet_v2": partial(models.mobilenet_v2, num_classes=CLASSES, scale=0.25),
}


def export(name: str, path: Path) -> Facts:
    """Build a network and write its file."""
    net = make(NETWORKS[name])
    spec = [InputSpec([-1, 3, 64, 64], "float32", "image")]
    paddle.onnx.export(net, str(path.with_suffix("")), input_spec=spec)
    return {"side": 64, "classes": CLASSES}


def _list_cases() -> Iterator[tuple[str, Export]]:
    for name in NETWORKS:
        yield f"paddle/{name}/paddle2onnx", partial(export, name)


if __name__ == "__main__":
    serve(dict(_list_cases()), PACKAGES)
