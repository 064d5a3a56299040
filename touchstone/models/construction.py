"""Networks built without their weights, which a file has: as an outline without memory, or uninitialized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from touchstone.errors import Failure, ModelUnusable

MIN_CALLS = 20_000
CALLS_PER_TENSOR = 60
"""Calls of torch that building a network may take: several times what any classifier takes."""

_COMPUTED = (torch.linspace, torch.arange, torch.tensor)
_COUNTED = (torch.linspace,)
_IN_PLACE_DRAWS = frozenset(
    {
        *("normal_", "uniform_", "erfinv_", "bernoulli_", "exponential_", "random_"),
        *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_"),
    }
)
_DRAWS = (torch.randn, torch.rand)

Build = Callable[[], nn.Module]


class _Outline(TorchFunctionMode):
    """Has every tensor on the meta device but those that a constructor computes with, such as depths.

    The number of calls is bounded, since the configuration of a network may ask for a billion layers.
    """

    def __init__(self, calls: int, computed: Collection[Any]) -> None:
        super().__init__()
        self._left = calls
        self._computed = computed

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ModelUnusable("the configuration describes far more layers than the file has tensors for")
        return function(*args, **(kwargs or {}) | ({"device": "cpu"} if function in self._computed else {}))


class _Uninitialized(TorchFunctionMode):
    """Draws no random numbers: what they would initialize is replaced anyhow, and a draw moves the global
    generator.
    """

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in _IN_PLACE_DRAWS:
            return args[0] if args else kwargs["tensor"]
        if function in _DRAWS:
            return torch.zeros(*args, **{name: one for name, one in kwargs.items() if name != "generator"})
        return function(*args, **kwargs)


def build_outline(build: Build, tensors: int) -> nn.Module:
    """The network on the meta device, which takes no memory: its names and shapes, for a file of so many
    tensors. Raises ModelUnusable.
    """
    calls = MIN_CALLS + CALLS_PER_TENSOR * tensors
    with torch.device("meta"), _explain_errors():
        try:
            with _Outline(calls, _COMPUTED), _Uninitialized():
                return build()
        except RuntimeError:  # a few constructors mix what they compute with parameters
            with _Outline(calls, _COUNTED), _Uninitialized():
                return build()


def build_uninitialized(build: Build) -> nn.Module:
    """The network with parameters of any value, and with all that is computed from its configuration."""
    with torch.device("cpu"), _explain_errors(), _Uninitialized():
        return build()


@contextmanager
def _explain_errors() -> Iterator[None]:
    """Turn whatever constructors of another package raise on a configuration into ModelUnusable."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise ModelUnusable(f"the network cannot be built: {type(error).__name__}: {error}"[:500]) from error
