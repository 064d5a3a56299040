"""Patterns of nodes: what a value was computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

from touchstone.models.onnx.draft import Draft
from touchstone.models.onnx.graph import Node

Bindings = Mapping[str, str]
"""The value that each capture of a pattern is bound to."""


@dataclass(frozen=True)
class Capture:
    """Any value, but the same wherever this name occurs; with `known`, only a constant."""

    name: str
    known: bool = False


@dataclass(frozen=True)
class Number:
    """A constant that is this one number, up to the rounding of float32."""

    value: float


@dataclass(frozen=True)
class LastMean:
    """The mean of a value over its last dimension, which is kept."""

    of: Pattern


@dataclass(frozen=True, init=False)
class Call:
    """An operator on values; sums and products match in any order."""

    operator: str
    inputs: tuple[Pattern, ...]

    def __init__(self, operator: str, *inputs: Pattern) -> None:
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "inputs", inputs)


@dataclass(frozen=True, init=False)
class OneOf:
    """The first of several patterns that matches."""

    patterns: tuple[Pattern, ...]

    def __init__(self, *patterns: Pattern) -> None:
        object.__setattr__(self, "patterns", patterns)


Pattern = Capture | Number | LastMean | Call | OneOf


def match(pattern: Pattern, name: str, draft: Draft, bindings: Bindings | None = None) -> Bindings | None:
    """The bindings with which a pattern matches the computation of a value; None where it does not match."""
    bindings = bindings or {}
    if isinstance(pattern, Capture):
        return _bind(pattern, name, draft, bindings)
    if isinstance(pattern, Number):
        found = draft.scalar(name)
        return bindings if found is not None and math.isclose(found, pattern.value, rel_tol=1e-6) else None
    if isinstance(pattern, OneOf):
        tries = (match(one, name, draft, bindings) for one in pattern.patterns)
        return next((found for found in tries if found is not None), None)
    node = draft.producers.get(name)
    if node is None:
        return None
    if isinstance(pattern, LastMean):
        return match(pattern.of, node.inputs[0], draft, bindings) if _is_last_mean(node, draft) else None
    return _match_call(pattern, node, draft, bindings)


def _bind(capture: Capture, name: str, draft: Draft, bindings: Bindings) -> Bindings | None:
    if capture.name in bindings:
        return bindings if bindings[capture.name] == name else None
    return {**bindings, capture.name: name} if name in draft.known or not capture.known else None


def _match_call(pattern: Call, node: Node, draft: Draft, bindings: Bindings) -> Bindings | None:
    if node.kind != pattern.operator or len(node.inputs) != len(pattern.inputs):
        return None
    if "axis" in node.attributes:  # the second operand of an old file's sum stands at an axis
        return None
    orders = permutations(node.inputs) if node.kind in ("Add", "Mul") else iter([node.inputs])
    for names in orders:
        found: Bindings | None = bindings
        for part, name in zip(pattern.inputs, names, strict=True):
            found = None if found is None else match(part, name, draft, found)
        if found is not None:
            return found
    return None


def _is_last_mean(node: Node, draft: Draft) -> bool:
    if node.kind != "ReduceMean":
        return False
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in draft.known:
        axes = tuple(draft.known[node.inputs[1]].tolist())
    last = len(draft.shape(node.inputs[0])) - 1
    return axes in ((-1,), (last,)) and node.attributes.get("keepdims", 1) == 1
