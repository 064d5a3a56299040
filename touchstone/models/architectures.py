"""Architectures by name: how a network is built, and the equivalent network for fast inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from touchstone.errors import ModelUnusable
from touchstone.models.construction import Build
from touchstone.models.fused.stages import RELU, RELU6, FrozenConv, Stage, fold_batch_norm
from touchstone.models.fused.trunk import Trunk
from touchstone.models.libraries import timm, torchvision, transformers
from touchstone.models.manifest import InputSpec
from touchstone.models.norm_gradients import correct_norm_gradients
from touchstone.models.state_dicts import load_tensors

TORCHVISION, TIMM, TRANSFORMERS = "torchvision/", "timm/", "transformers/"


@dataclass(frozen=True)
class Architecture:
    """`build` makes the network for training; `load` makes it with the tensors of a file; `freeze` makes a
    faster one with equal outputs, or corrects what it has.

    `build` takes the input and the number of classes. The network maps normalized images (B, C, H, W) to
    logits (B, K).
    """

    build: Callable[[InputSpec, int], nn.Module]
    freeze: Callable[[nn.Module], nn.Module] = correct_norm_gradients
    load: Callable[[Build, Mapping[str, Tensor]], nn.Module] = load_tensors


def find_architecture(name: str, config: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture of this name, configured so. Raises ModelUnusable."""
    if name.startswith(TORCHVISION):
        return Architecture(partial(torchvision.build, name.removeprefix(TORCHVISION)), load=torchvision.load)
    if name.startswith(TIMM):
        return Architecture(partial(timm.build, name.removeprefix(TIMM), config or {}))
    if name.startswith(TRANSFORMERS):
        kind = name.removeprefix(TRANSFORMERS)
        return Architecture(partial(transformers.build, kind, config or {}), load=transformers.load)
    if name not in ARCHITECTURES:
        raise ModelUnusable(_suggest(name[:60]))
    return ARCHITECTURES[name]


def _suggest(name: str) -> str:
    return (
        f"there is no architecture named {name!r}; there are: {', '.join(ARCHITECTURES)}; those of other "
        f"packages are named {TORCHVISION}{name} or {TIMM}{name}, or {TRANSFORMERS[:-1]} with its config.json"
    )


class SmallCNN(nn.Sequential):
    """Four convolutions and two linear layers, without BatchNorm, for images of about 28x28."""

    def __init__(self, spec: InputSpec, classes: int) -> None:
        # Two of the convolutions have stride 2 and padding 1: each halves a side and rounds up.
        height, width = -(-spec.height // 4), -(-spec.width // 4)
        super().__init__(
            *(nn.Conv2d(spec.channels, 32, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(64, 48, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
            nn.Flatten(),
            *(nn.Linear(48 * height * width, 128), nn.ReLU(inplace=True)),
            nn.Linear(128, classes),
        )


def _freeze_small_cnn(net: nn.Module) -> nn.Module:
    layers = list(net.children())
    convs = [
        FrozenConv(one.weight, one.bias, stride=one.stride[0], padding=int(one.padding[0]), ceiling=RELU)
        for one in layers
        if isinstance(one, nn.Conv2d) and one.bias is not None
    ]
    return nn.Sequential(Trunk(Stage(*convs)), *layers[2 * len(convs) :])


def _build_lite0(spec: InputSpec, classes: int) -> nn.Module:
    # Imported here: only this architecture needs the package. Its own loader prints; building does not.
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    net: nn.Module = EfficientNet.from_name(
        "efficientnet-lite0",
        num_classes=classes,
        image_size=[spec.height, spec.width],
        in_channels=spec.channels,
    )
    return net


def _freeze_lite0(net: Any) -> nn.Module:
    stem = FrozenConv(*fold_batch_norm(net._conv_stem, net._bn0), stride=2, ceiling=RELU6)
    head = FrozenConv(*fold_batch_norm(net._conv_head, net._bn1), ceiling=RELU6)
    return nn.Sequential(
        nn.ZeroPad2d(_static_padding(net._conv_stem)),
        Trunk(Stage(stem), *map(_freeze_block, net._blocks), Stage(head)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        net._fc,
    )


def _freeze_block(block: Any) -> Stage:
    convs = [
        _freeze_same(block._depthwise_conv, block._bn1, RELU6),
        _freeze_same(block._project_conv, block._bn2),
    ]
    if hasattr(block, "_expand_conv"):
        convs.insert(0, _freeze_same(block._expand_conv, block._bn0, RELU6))
    same_size = (
        block._expand_conv.in_channels == block._project_conv.out_channels if len(convs) == 3 else False
    )
    return Stage(*convs, skip=block.id_skip and convs[-2].stride == 1 and same_size)


def _freeze_same(conv: Any, norm: nn.BatchNorm2d, ceiling: float | None = None) -> FrozenConv:
    """A convolution with TensorFlow's "same" padding, whose right margin may be one wider than the left.

    A kernel with a row and a column of zeros before it needs that margin on both sides, which spares
    a padded copy of the features.
    """
    weight, bias = fold_batch_norm(conv, norm)
    left, right, top, bottom = _static_padding(conv)
    if right > left:
        weight = functional.pad(weight, (right - left, 0, bottom - top, 0))
    return FrozenConv(weight, bias, stride=conv.stride[0], padding=right, groups=conv.groups, ceiling=ceiling)


def _static_padding(conv: Any) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    padding = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    left, right, top, bottom = map(int, padding)
    return left, right, top, bottom


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "efficientnet-lite0": Architecture(_build_lite0, _freeze_lite0),
        "small-cnn": Architecture(SmallCNN, _freeze_small_cnn),
    }
)
