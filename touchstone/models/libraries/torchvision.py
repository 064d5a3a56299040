"""Classifiers of torchvision, by the names of its `list_models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from touchstone.errors import ModelUnusable
from touchstone.models.construction import Build
from touchstone.models.libraries.installed import import_package
from touchstone.models.manifest import InputSpec
from touchstone.models.state_dicts import load_tensors

_INCEPTIONS = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def build(name: str, spec: InputSpec, classes: int) -> nn.Module:
    """The network of this name. Raises ModelUnusable."""
    package = import_package("torchvision")
    models = package.models
    if name not in models.list_models(module=models):  # of this module: no detectors, no quantized networks
        raise ModelUnusable(
            f"torchvision {package.__version__} has no architecture named {name[:60]!r} for classification"
        )
    if spec.channels != 3:
        raise ModelUnusable("input.channels: torchvision's networks take 3", field="input.channels")
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **_arguments(name, spec))
    return net


def _arguments(name: str, spec: InputSpec) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": spec.height}
    if name.startswith("maxvit"):
        return {"input_size": (spec.height, spec.width)}
    return {"aux_logits": False, "init_weights": False} if name in _INCEPTIONS else {}


def load(build: Build, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these tensors, without heads that only training uses. Raises MisfitError."""
    return load_tensors(build, {name: one for name, one in tensors.items() if not _is_auxiliary(name)})


def _is_auxiliary(name: str) -> bool:
    return name.startswith(_AUXILIARY) or any(f".{head}" in name for head in _AUXILIARY)
