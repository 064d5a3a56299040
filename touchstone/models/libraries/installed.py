"""Packages that may be missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from touchstone.errors import ModelUnusable


def import_package(name: str) -> Any:
    """The package, imported. Raises ModelUnusable, which says what to install."""
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as missing:  # torchvision beside an unfit PyTorch raises RuntimeError
        raise ModelUnusable(
            f"architectures of {name} need that package, which cannot be imported ({missing}): install the "
            f"extra touchstone-robustness[{name}], or export the network to ONNX"
        ) from ImportError(str(missing))
