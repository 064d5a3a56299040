"""Operators by name and version: each is one function, whose signature is the operator's.

Positional parameters are the operator's inputs, in ONNX's order, and keyword-only ones its attributes, with
ONNX's names. An input annotated `Known` is passed as a numpy array: it must be known before the network runs.
One annotated `Like` gives nothing but its type.
A keyword parameter `outputs` receives the number of the node's outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, TypeVar

import numpy.typing as npt
from torch import Tensor

from touchstone.errors import UnsupportedOperator
from touchstone.models.onnx.graph import CONTROL_FLOW, Node, list_nodes

Known = Annotated[npt.NDArray[Any], "known before the network runs"]
"""An input that controls the computation: a shape, axes, bounds."""

Like = Annotated[Tensor, "only its type matters"]
"""An input whose numbers need not be known, even where the result must be."""

Function = TypeVar("Function", bound=Callable[..., Any])

_VERSIONS: dict[str, dict[int, Operator]] = {}

_HINTS = {"Scan": "control flow is not supported: export by tracing"}

_DOMAINS = ("", "com.microsoft")
"""Of operators in files; other domains are our own, such as those of fused nodes."""


@dataclass(frozen=True)
class Operator:
    """An operator from a version of the operator set on."""

    name: str
    since: int
    function: Callable[..., Any]

    @cached_property
    def known(self) -> tuple[int, ...]:
        """The positions of the inputs that must be known before the network runs."""
        return self._find_positions(Known, Known | None)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """The positions of the inputs of which only the type matters."""
        return self._find_positions(Like)

    def _find_positions(self, *kinds: object) -> tuple[int, ...]:
        return tuple(i for i, one in enumerate(self._parameters) if one.annotation in kinds)

    @cached_property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function, eval_str=True).parameters.values())

    def bind(self, node: Node) -> Callable[..., Any]:
        """The function of the inputs alone, for the attributes of this node."""
        attributes = dict(node.attributes)
        if any(one.name == "outputs" for one in self._parameters):
            attributes["outputs"] = len(node.outputs)
        return partial(self.function, **attributes) if attributes else self.function


def operator(name: str, since: int = 1) -> Callable[[Function], Function]:
    """Register a function as an operator from this version of the operator set on."""

    def register(function: Function) -> Function:
        _VERSIONS.setdefault(name, {})[since] = Operator(name, since, function)
        return function

    return register


def register_elementwise(name: str, function: Callable[..., Any], since: int = 1) -> None:
    """Register a function of one tensor that has no attributes."""

    @operator(name, since)
    def unary(x: Tensor) -> Tensor:
        y: Tensor = function(x)
        return y


def supported_operators() -> frozenset[str]:
    """All supported operators."""
    return frozenset(_VERSIONS) | {*CONTROL_FLOW}


def find_operator(node: Node, opset: int) -> Operator | None:
    """The operator of this node; None where it is not supported."""
    versions = _VERSIONS.get(node.kind, {})
    since = max((version for version in versions if version <= opset), default=None)
    return None if since is None else versions[since]


def _is_supported(node: Node, opset: int) -> bool:
    """Whether it is supported in a file."""
    foreign = node.domain not in _DOMAINS or "." in node.operator
    return node.kind in CONTROL_FLOW or (not foreign and find_operator(node, opset) is not None)


def check_supported(nodes: Sequence[Node], opset: int) -> None:
    """Raise UnsupportedOperator, which names all unsupported operators, unless every node is supported."""
    missing = [node for node in list_nodes(nodes) if not _is_supported(node, opset)]
    if missing:
        kinds = sorted({node.kind for node in missing})
        first, others = missing[0], ", ".join(kind[:60] for kind in kinds[:20])
        domain, node = first.domain[:40] or "ai.onnx", (first.name or first.outputs[0])[:80]
        raise UnsupportedOperator(
            f"the operator {first.operator[:60]} (domain {domain!r}, opset {opset}, node {node!r}) "
            f"cannot be imported: "
            f"{_HINTS.get(first.operator, 'it is not supported')}"
            + (f"; all that are not supported: {others}" if len(kinds) > 1 else ""),
            operators=kinds,
        )
