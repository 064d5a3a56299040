"""How much each block measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import touchstone
from benchmarks.gpu.clock import Clock
from benchmarks.networks import CNN, LITE0, clothes, photos
from touchstone.evaluation import Model

EPS = {CNN: 0.03, LITE0: 2 / 255}


@dataclass(frozen=True)
class Sizes:
    """Of a full run; a test takes less of everything."""

    rows: tuple[int, ...] = (1, 8, 64, 256, 1024)
    attacked: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {CNN: (1, 64, 1024), LITE0: (16, 256)}
    )
    steps: int = 40
    plans: tuple[int, ...] = (64, 256)
    clients: tuple[int, ...] = (64, 256)
    jobs: Mapping[str, int] = field(default_factory=lambda: {CNN: 512, LITE0: 256})
    samples: Mapping[str, int] = field(default_factory=lambda: {CNN: 50_000, LITE0: 5_000})
    compared: Mapping[str, int] = field(default_factory=lambda: {CNN: 64, LITE0: 16})
    turns: int = 5
    rounds: int = 3


SMALL = Sizes(
    rows=(1, 2),
    attacked={CNN: (2,)},
    steps=4,
    plans=(2,),
    clients=(2,),
    jobs={CNN: 4},
    samples={CNN: 200},
    compared={CNN: 2},
    turns=2,
    rounds=1,
)
"""For a test on a CPU: one small network, some seconds in all."""

BOXES = {
    "device": 30,
    "passes": 30,
    "peers": 90,
    "plans": 60,
    "service": 120,
    "smoothing": 45,
    "memory": 30,
    "equality": 60,
}
"""Seconds for each block; the sum leaves a quarter of a minute of the eight to start and to end."""


class Setup:
    """The device, and the models as they are needed."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes, self.clock = device, sizes, Clock(device)
        self._models: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """A model of the zoo on the device."""
        if name not in self._models:
            self._models[name] = touchstone.load(name, device=str(self.device))
        return self._models[name]

    def images(self, name: str, count: int) -> Tensor:
        """As many images on the device, (count, C, H, W); they repeat."""
        some = clothes(min(count, 256)) if name == CNN else photos()
        return some.repeat(-(-count // len(some)), 1, 1, 1)[:count].to(self.device)
