"""The networks and images that all libraries are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from touchstone.models.loader import load_plain
from touchstone.models.zoo import find_manifest
from touchstone.training.datasets import fashion_mnist_sample

PHOTOS = Path(__file__).parents[1] / "examples/photos"
LITE0 = "imagenet-efficientnet-lite0"
CNN = "fashion-mnist-cnn"


class NormalizedNetwork(nn.Module):
    """A network as its publisher ships it, behind its normalization: what a user hands to a library."""

    def __init__(self, name: str) -> None:
        super().__init__()
        model_manifest = find_manifest(name)
        self.net = load_plain(model_manifest)
        self.register_buffer("mean", torch.tensor(model_manifest.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(model_manifest.std).view(1, -1, 1, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def photos(count: int = 16, side: int = 224) -> Tensor:
    """Crops of the sample photos at the network's size, (count, 3, side, side) in [0,1]."""
    crops = []
    for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png"):
        image = Image.open(PHOTOS / name).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        for left, upper in ((0, 0), (image.width - side, 0), (0, 32), (image.width - side, 32)):
            crops.append(np.asarray(image.crop((left, upper, left + side, upper + side))))
    return torch.from_numpy(np.stack(crops[:count])).permute(0, 3, 1, 2).contiguous() / 255


def clothes(count: int) -> Tensor:
    """Fashion-MNIST test images, (count, 1, 28, 28) in [0,1]."""
    pixels = fashion_mnist_sample().images[:count]
    return torch.from_numpy(np.array(pixels))[:, None] / 255
