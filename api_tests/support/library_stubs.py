"""Stubs of packages whose architectures are optional, each with one small network."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


class StubConfig:
    """The configuration of a linear classifier, which notes everything that it is given."""

    sub_configs: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, hidden_size: int = 2, image_size: int = 8, num_labels: int = 2, **others: Any) -> None:
        self.hidden_size, self.image_size, self.num_labels = hidden_size, image_size, num_labels
        self.others = others


class StubClassifier(nn.Module):
    """Two linear layers; like transformers, it renames the tensors of an earlier version."""

    config_class = StubConfig

    def __init__(self, config: StubConfig) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Linear(3 * config.image_size**2, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values.flatten(1))))

    @classmethod
    def from_pretrained(cls, path: None, *, config: StubConfig, state_dict: Any, **options: Any) -> Any:
        assert path is None
        assert options == {"output_loading_info": True, "ignore_mismatched_sizes": True}
        net = cls(config)
        named = {name.replace("old_", ""): one for name, one in state_dict.items()}
        shapes = {name: one.shape for name, one in net.state_dict().items()}
        wrong = {name for name in named.keys() & shapes if named[name].shape != shapes[name]}
        found = {
            "missing_keys": shapes.keys() - named,
            "unexpected_keys": named.keys() - shapes,
            "mismatched_keys": {(name, named[name].shape, shapes[name]) for name in wrong},
        }
        net.load_state_dict({name: one for name, one in named.items() if name not in wrong}, strict=False)
        return net.eval(), found


class StubLogging:
    """transformers' own settings of logs."""

    level, bars = 30, True

    def get_verbosity(self) -> int:
        return self.level

    def set_verbosity(self, level: int) -> None:
        self.level = level

    def set_verbosity_error(self) -> None:
        self.level = 40

    def is_progress_bar_enabled(self) -> bool:
        return self.bars

    def enable_progress_bar(self) -> None:
        self.bars = True

    def disable_progress_bar(self) -> None:
        self.bars = False


def install_transformers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stub of transformers whose one classifier is ViT's."""
    package: Any = ModuleType("transformers")
    package.__version__ = "0"
    package.ViTForImageClassification = StubClassifier
    package.PretrainedConfig = type("PretrainedConfig", (), {"__init__": lambda self, num_labels=2: None})
    package.utils = SimpleNamespace(logging=StubLogging())
    monkeypatch.setitem(__import__("sys").modules, "transformers", package)
    return package  # type: ignore[no-any-return]


def linear(classes: int) -> nn.Module:
    """A linear network for images of 8x8."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


def install_torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stub of torchvision with the architecture `linear` and its published weights."""

    def get_model(name: str, weights: None, num_classes: int) -> nn.Module:
        return linear(num_classes)

    transforms = SimpleNamespace(
        resize_size=[10],
        crop_size=[8],
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        interpolation=SimpleNamespace(value="bilinear"),
    )
    weights = SimpleNamespace(transforms=lambda: transforms, meta={"categories": ["cat", "dog "]})
    package: Any = ModuleType("torchvision")
    package.__version__ = "0"
    package.models = SimpleNamespace(
        list_models=lambda module: ["linear"],
        get_model=get_model,
        get_model_weights=lambda name: {"linear": SimpleNamespace(DEFAULT=weights)}[name],
    )
    monkeypatch.setitem(__import__("sys").modules, "torchvision", package)
    return package  # type: ignore[no-any-return]
