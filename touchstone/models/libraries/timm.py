"""Networks of timm, by name, with the arguments that their configuration may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from touchstone.errors import ModelUnusable
from touchstone.models.libraries.installed import import_package
from touchstone.models.manifest import InputSpec

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")  # no "hf-hub:…", which would fetch something


def build(name: str, arguments: Mapping[str, Any], spec: InputSpec, classes: int) -> nn.Module:
    """The network of this name. Raises ModelUnusable."""
    timm = import_package("timm")
    if not _NAME.fullmatch(name) or not timm.is_model(name):
        raise ModelUnusable(f"timm {timm.__version__} has no architecture named {name[:60]!r}")
    net: nn.Module = timm.create_model(
        name,
        pretrained=False,
        num_classes=classes,
        in_chans=spec.channels,
        # Architectures whose positions are counted take the size of the input from here.
        pretrained_cfg_overlay={"input_size": (spec.channels, spec.height, spec.width)},
        **arguments,
    )
    return net
