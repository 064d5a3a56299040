"""Networks of PyTorch by library, with random weights: narrow where the library allows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if sys.platform == "linux" and torch.version.cuda is None:
    # PyPI's torchvision is built for CUDA: without it, its library does not load and operators are missing.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import torchvision.models as tv
import transformers as hf
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """How to build a network, and the side of its images."""

    build: Callable[[], nn.Module]
    side: int = 64


def make(network: Network) -> nn.Module:
    """The network in eval mode. Nothing in it is constant, and its batch norm has the statistics of noise."""
    torch.manual_seed(0)
    net = network.build().eval()
    with torch.no_grad():
        for weight in net.parameters():
            _disturb(weight)
        _measure_statistics(net, network.side)
        _spread_logits(net, network.side)
    return net.requires_grad_(False)


def _disturb(weight: Tensor) -> None:
    """Make a weight vary, and so large that a deep network is far from constant."""
    if weight.numel() == 1 or weight.std() < 1e-3:
        weight.add_(0.1 * torch.randn_like(weight))
    usual = weight[:1].numel() ** -0.5
    if weight.ndim > 1 and weight.std() < usual / 2:
        weight.mul_(usual / weight.std())


def _measure_statistics(net: nn.Module, side: int) -> None:
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    net(torch.randn(8, 3, side, side))
    for norm in norms:
        norm.eval()


def _spread_logits(net: nn.Module, side: int) -> None:
    """Scale and shift the last layer so that the image decides the label, not the bias."""
    heads = [one for one in net.modules() if isinstance(one, nn.Linear) and one.out_features == CLASSES]
    if heads and heads[-1].bias is not None:
        answer = net(torch.randn(8, 3, side, side))
        logits = answer if isinstance(answer, Tensor) else answer.logits
        scale = logits.std(0).mean()
        heads[-1].weight.div_(scale)
        heads[-1].bias.sub_(logits.mean(0)).div_(scale)


def _conv(inputs: int, outputs: int, k: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Inverted residual with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, 12, 1), nn.ReLU6(), _conv(12, 12, 3, groups=12), nn.Hardswish()
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Hardsigmoid())
        self.out = _conv(12, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The block on images."""
        y = self.body(x)
        return x + self.out(y * self.gate(y))


def convolutional() -> nn.Module:
    """A mobile network of one block, with max pooling."""
    stem = (_conv(3, 8, 3, 2), nn.SiLU(), nn.MaxPool2d(3, 2, 1), Residual(8), _conv(8, 16, 1), nn.GELU())
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, CLASSES))


class Mixed(nn.Module):
    """Branches, chunks, interpolation and padding, as in many hand-written networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.PReLU(8)
        )
        self.left, self.right = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        a, b = self.stem(x).chunk(2, 1)
        a = functional.interpolate(self.left(a), b.shape[-2:], mode="bilinear", align_corners=False)
        y = torch.cat([a.tanh(), functional.leaky_relu(self.right(b))], 1)
        y = functional.normalize(y, dim=1) * functional.softplus(y).amax((2, 3), keepdim=True)
        return self.head(y.flatten(2).mean(-1))


class Recurrent(nn.Module):
    """An LSTM over the rows of the image."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(96, 6, batch_first=True, bidirectional=True), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mean over all rows."""
        rows = x.permute(0, 2, 1, 3).flatten(2)
        return self.head(self.rnn(rows)[0].mean(1))


class Looped(nn.Module):
    """A layer that is repeated, and a choice by the size of the image; only a script keeps both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for _ in range(x.shape[2] // 2):
            x = x + torch.tanh(self.layer(x))
        x = functional.max_pool2d(x, 2) if x.shape[3] > 4 else -x
        return self.head(x.mean((2, 3)))


def swin(version: int) -> nn.Module:
    """A narrow Swin transformer of two stages."""
    extra: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    sizes: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    return tv.SwinTransformer(
        **sizes, window_size=[4, 4], num_classes=CLASSES, **(extra if version == 2 else {})
    )


def _configured(name: str, **values: Any) -> nn.Module:
    """An image classifier of transformers by the name of its configuration."""
    config = getattr(hf, f"{name}Config")(num_labels=CLASSES, **values)
    return getattr(hf, f"{name}ForImageClassification")(config)


def _timm(name: str, **values: Any) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **values)


OWN = {
    "convolutional": Network(convolutional, 32),
    "mixed": Network(Mixed, 32),
    "lstm": Network(partial(Recurrent, nn.LSTM), 32),
    "looped": Network(Looped, 32),
    "gru": Network(partial(Recurrent, nn.GRU), 32),
}

_ENCODER: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_VIT = {**_ENCODER, "image_size": 32, "patch_size": 8}

TRANSFORMERS = {
    "ViT": Network(partial(_configured, "ViT", **_VIT), 32),
    "DeiT": Network(partial(_configured, "DeiT", **_VIT), 32),
    "Beit": Network(partial(_configured, "Beit", **_VIT, use_relative_position_bias=True), 32),
    "Dinov2": Network(partial(_configured, "Dinov2", **_VIT), 32),
    "Siglip": Network(lambda: _configured("Siglip", vision_config={**_VIT}), 32),
    "ConvNext": Network(partial(_configured, "ConvNext", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]), 64),
    "ConvNextV2": Network(
        partial(_configured, "ConvNextV2", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]), 64
    ),
    "Swin": Network(
        partial(_configured, "Swin", image_size=32, embed_dim=4, depths=[2], num_heads=[2], window_size=4), 32
    ),
    "Swinv2": Network(
        partial(
            _configured, "Swinv2", image_size=32, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4
        ),
        32,
    ),
    "ResNet": Network(
        partial(
            _configured,
            "ResNet",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
        ),
        32,
    ),
    "RegNet": Network(
        partial(_configured, "RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
        32,
    ),
    "MobileNetV1": Network(partial(_configured, "MobileNetV1", depth_multiplier=0.25), 64),
    "MobileNetV2": Network(partial(_configured, "MobileNetV2", depth_multiplier=0.25), 64),
    "MobileViT": Network(
        partial(
            _configured,
            "MobileViT",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        ),
        64,
    ),
    "MobileViTV2": Network(partial(_configured, "MobileViTV2", image_size=64, width_multiplier=0.25), 64),
    "Levit": Network(partial(_configured, "Levit", image_size=64), 64),
    "PoolFormer": Network(
        partial(_configured, "PoolFormer", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]), 64
    ),
    "PvtV2": Network(
        partial(
            _configured,
            "PvtV2",
            image_size=64,
            hidden_sizes=[8, 16, 16, 16],
            depths=[1] * 4,
            num_attention_heads=[1, 2, 2, 2],
        ),
        64,
    ),
    "Segformer": Network(partial(_configured, "Segformer", hidden_sizes=[8, 16, 16, 16], depths=[1] * 4), 64),
    "Bit": Network(
        partial(_configured, "Bit", embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4), 64
    ),
    "FocalNet": Network(
        partial(
            _configured,
            "FocalNet",
            image_size=64,
            embed_dim=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
        ),
        64,
    ),
    "Cvt": Network(
        partial(_configured, "Cvt", embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3]), 64
    ),
    "SwiftFormer": Network(
        partial(_configured, "SwiftFormer", image_size=64, depths=[1] * 4, embed_dims=[8, 16, 16, 16]), 64
    ),
    "Hiera": Network(
        partial(
            _configured,
            "Hiera",
            image_size=[64, 64],
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
        ),
        64,
    ),
}


def _torchvision(name: str, **values: Any) -> Network:
    return Network(partial(getattr(tv, name), num_classes=CLASSES, **values))


TORCHVISION = {
    "alexnet": _torchvision("alexnet"),
    "vgg11_bn": _torchvision("vgg11_bn"),
    "resnet18": _torchvision("resnet18"),
    "resnext50_32x4d": _torchvision("resnext50_32x4d"),
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "densenet121": _torchvision("densenet121"),
    "googlenet": _torchvision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": Network(partial(tv.inception_v3, num_classes=CLASSES, init_weights=False), 96),
    "mobilenet_v2": _torchvision("mobilenet_v2", width_mult=0.25),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
    "mnasnet0_5": _torchvision("mnasnet0_5"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "efficientnet_v2_s": _torchvision("efficientnet_v2_s"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "convnext": Network(
        lambda: tv.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=CLASSES)
    ),
    "vit": Network(lambda: tv.VisionTransformer(32, 8, 1, 2, 8, 16, num_classes=CLASSES), 32),
    "swin": Network(partial(swin, 1)),
    "swin_v2": Network(partial(swin, 2)),
    "maxvit": Network(lambda: tv.MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES)),
}

TIMM = {
    name: Network(partial(_timm, name, **values), side)
    for name, side, values in (
        ("beit_base_patch16_224", 64, {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("botnet26t_256", 256, {}),
        ("cait_xxs24_224", 64, {"img_size": 64, "depth": 2}),
        ("coatnet_nano_rw_224", 224, {}),
        ("convnextv2_atto", 64, {}),
        ("crossvit_tiny_240", 240, {}),
        ("edgenext_xx_small", 64, {}),
        ("efficientformer_l1", 224, {}),
        ("efficientnet_lite0", 64, {}),
        ("ese_vovnet19b_slim_dw", 64, {}),
        ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 2}),
        ("fastvit_t8", 64, {}),
        ("focalnet_tiny_srf", 64, {}),
        ("ghostnet_050", 64, {}),
        ("gmlp_ti16_224", 64, {"img_size": 64}),
        ("halonet26t", 256, {}),
        ("hiera_tiny_224", 224, {}),
        ("hrnet_w18_small", 64, {}),
        ("inception_next_atto", 64, {}),
        ("lambda_resnet26t", 256, {}),
        ("lcnet_050", 64, {}),
        ("levit_128s", 224, {}),
        ("mambaout_femto", 64, {}),
        ("mixer_s32_224", 64, {"img_size": 64}),
        ("mixnet_s", 64, {}),
        ("mobilenetv4_conv_small", 64, {}),
        ("mobilevit_xxs", 64, {}),
        ("mobilevitv2_050", 64, {}),
        ("nest_tiny", 224, {}),
        ("nf_resnet26", 64, {}),
        ("pit_ti_224", 224, {}),
        ("poolformer_s12", 64, {}),
        ("pvt_v2_b0", 64, {}),
        ("repvgg_a0", 64, {}),
        ("repvit_m0_9", 64, {}),
        ("res2net50_14w_8s", 64, {}),
        ("resmlp_12_224", 64, {"img_size": 64}),
        ("resnetv2_18", 64, {}),
        ("sequencer2d_s", 64, {"layers": (1, 1, 1, 1)}),
        ("starnet_s1", 64, {}),
        ("tiny_vit_5m_224", 224, {}),
        ("twins_pcpvt_small", 64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
        ("visformer_tiny", 224, {}),
        ("xcit_nano_12_p16_224", 64, {"img_size": 64, "depth": 2}),
    )
}

NETWORKS: Mapping[str, Mapping[str, Network]] = {
    "own": OWN,
    "transformers": TRANSFORMERS,
    "torchvision": TORCHVISION,
    "timm": TIMM,
}
