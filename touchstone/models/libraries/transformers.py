"""Image classifiers of transformers, from the values of a `config.json`; no code that it may name is run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from touchstone.errors import ModelUnusable
from touchstone.models.construction import Build, build_outline
from touchstone.models.libraries.classifiers import CLASSIFIERS
from touchstone.models.libraries.installed import import_package
from touchstone.models.manifest import InputSpec
from touchstone.models.state_dicts import MisfitError, format_names, strip_wrappers

_NOT_BUILT = frozenset(
    {"backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"}
)
"""Fields that would build, or fetch, another network."""


class Classifier(nn.Module):
    """A classifier of transformers whose answer is its logits alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        return self.network(pixel_values=x).logits  # type: ignore[no-any-return]


def build(name: str, values: Mapping[str, Any], spec: InputSpec, classes: int) -> nn.Module:
    """The classifier of this class with these values of its configuration. Raises ModelUnusable."""
    package = import_package("transformers")
    if name not in CLASSIFIERS or not hasattr(package, name):
        raise ModelUnusable(
            f"transformers {package.__version__} has no classifier named {name[:60]!r} that can be built; "
            f"there are: {', '.join(CLASSIFIERS)}"
        )
    if values.get("num_channels", spec.channels) != spec.channels:
        raise ModelUnusable(
            f"input.channels: the configuration has {values['num_channels']}", field="input.channels"
        )
    kind = getattr(package, name)
    config = kind.config_class(**select_values(kind.config_class, package, values), num_labels=classes)
    return Classifier(kind(config))


def select_values(config: Any, package: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values that are this configuration's own parameters, in its parts likewise.

    Anything else would become an attribute of it, and some attributes choose code.
    """
    parts: Mapping[str, Any] = getattr(config, "sub_configs", {})
    common = inspect.signature(package.PretrainedConfig).parameters
    own = set(inspect.signature(config).parameters) - set(common) - _NOT_BUILT
    return {
        name: select_values(parts[name], package, value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name in own and (name in parts or not isinstance(value, Mapping))
    }


def load(build: Build, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The classifier with these tensors; the package itself renames those of its earlier versions.

    Raises MisfitError, which lists names and shapes that do not fit.
    """
    outline: Any = build_outline(build, len(tensors))
    plain = outline.network
    given = strip_wrappers(tensors, plain.state_dict())
    _check_size(given, plain)
    with _quiet(import_package("transformers")):
        network, found = type(plain).from_pretrained(
            None,
            config=plain.config,
            state_dict=given,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_found(found)
    return Classifier(network)


def _check_size(given: Mapping[str, Tensor], outline: nn.Module) -> None:
    """Raise MisfitError where the network has more parameters than the file, before it takes memory."""
    needed = sum(one.numel() for one in outline.parameters())
    available = sum(one.numel() for one in given.values())
    if needed > available:
        shapes = {tuple(one.shape) for one in given.values()}
        lacking = [
            f"{name} {tuple(one.shape)}"
            for name, one in outline.named_parameters()
            if tuple(one.shape) not in shapes
        ]
        raise MisfitError(
            f"the configuration describes {needed:,} parameters, the file has {available:,}; "
            + format_names("missing", lacking)
        )


def _check_found(found: Mapping[str, Any]) -> None:
    faults = {
        "missing": sorted(map(str, found["missing_keys"])),
        "unexpected": sorted(map(str, found["unexpected_keys"])),
        "size mismatch": [
            f"{name} is {tuple(stored)}, not {tuple(shape)}"
            for name, stored, shape in sorted(found["mismatched_keys"])
        ],
    }
    if any(faults.values()):
        raise MisfitError("; ".join(format_names(kind, names) for kind, names in faults.items() if names))


@contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """Without the package's progress bars and warnings."""
    logging = package.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
