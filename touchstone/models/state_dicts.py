"""The tensors of a file as the state of a network: their names are matched before any memory is taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from touchstone.models.construction import Build, build_outline, build_uninitialized

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "timm_model.")
"""What DataParallel, torch.compile, Lightning and other wrappers put before each name."""

SHOWN = 4
_COUNTER = "num_batches_tracked"

Shape = tuple[int, ...]


class MisfitError(ValueError):
    """Names or shapes of tensors are not those of the network; the text lists the first."""


def load_tensors(build: Build, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these tensors. Raises MisfitError, which lists names and shapes that do not fit."""
    outline = build_outline(build, len(tensors))
    state = fit_names(tensors, outline)
    net = build_uninitialized(build)
    # Counters of batches may be missing: networks in eval mode do not use them.
    net.load_state_dict(_add_versions(state, net), strict=False, assign=True)
    return net


def _add_versions(state: dict[str, Tensor], net: nn.Module) -> OrderedDict[str, Tensor]:
    """The state as the network would save it: modules refuse, or convert, one without their versions."""
    versioned: Any = OrderedDict(state)
    versioned._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned  # type: ignore[no-any-return]


def fit_names(tensors: Mapping[str, Tensor], outline: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of the network. Raises MisfitError."""
    expected: dict[str, Tensor] = outline.state_dict(keep_vars=True)
    given = strip_wrappers(tensors, expected)
    given |= _find_tied(given, expected)
    check_names(_shapes(given), _shapes(expected))
    return {name: given[name] for name in expected if name in given}


def strip_wrappers(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors without prefixes that all of them have and no expected name has."""
    given, names = dict(tensors), tuple(expected)
    while prefix := _find_prefix(given, names):
        given = {name.removeprefix(prefix): one for name, one in given.items()}
    return given


def _find_prefix(given: Iterable[str], names: Iterable[str]) -> str | None:
    for prefix in WRAPPERS:
        wrapped = all(name.startswith(prefix) for name in given)
        if wrapped and not any(name.startswith(prefix) for name in names):
            return prefix
    return None


def _find_tied(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the file has under another name of the same parameter, since it stores each once."""
    stored = {id(expected[name]): given[name] for name in expected if name in given}
    return {
        name: stored[id(one)] for name, one in expected.items() if name not in given and id(one) in stored
    }


def check_names(given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise MisfitError unless names and shapes are the same, counters of batches aside."""
    given, expected = _without_counters(given), _without_counters(expected)
    faults = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in given],
        "unexpected": [f"{name} {shape}" for name, shape in given.items() if name not in expected],
        "size mismatch": [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ],
    }
    if any(faults.values()):
        raise MisfitError("; ".join(format_names(kind, names) for kind, names in faults.items() if names))


def format_names(kind: str, names: list[str]) -> str:
    """The first few of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{kind}: {', '.join(name[:120] for name in names[:SHOWN])}{more}"


def _without_counters(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name.split(".")[-1] != _COUNTER}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(one.shape) for name, one in tensors.items()}
