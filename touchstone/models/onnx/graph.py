"""A network as its file describes it: nodes, weights, one image in, one tensor out. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from touchstone.errors import InvalidModel

Array = npt.NDArray[Any]


CONTROL_FLOW = ("If", "Loop")
"""Operators that run other nodes; see `control_flow`."""


@dataclass(frozen=True)
class Opaque:
    """An attribute of a type that no supported operator has."""

    kind: str


@dataclass(frozen=True)
class Port:
    """An input or output of the network; None stands for a size that is not fixed."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def format_shape(self) -> str:
        """The shape as messages show it."""
        return f"({', '.join('any' if side is None else str(side) for side in self.shape)})"


@dataclass(frozen=True)
class Node:
    """One operator with its inputs and outputs; an input named "" is omitted."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    name: str = ""
    domain: str = ""

    @property
    def kind(self) -> str:
        """The operator with its domain, unless that is ONNX itself."""
        return f"{self.domain}.{self.operator}" if self.domain else self.operator

    @property
    def bodies(self) -> tuple[Subgraph, ...]:
        """The nodes that it runs, where it is an If or a Loop."""
        return tuple(value for value in self.attributes.values() if isinstance(value, Subgraph))

    def __str__(self) -> str:
        return f"{self.kind} node {(self.name or self.outputs[0])[:80]!r}"


@dataclass(frozen=True)
class Subgraph:
    """A branch of an If or the body of a Loop. What it reads of the graph around it is also an input of its
    node, after the others.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def captured(self) -> Iterator[str]:
        """The values that it reads of the graph around it, each perhaps several times."""
        own = {*self.inputs, *(name for node in self.nodes for name in node.outputs)}
        read = (name for node in self.nodes for name in node.inputs)
        return (name for name in chain(read, self.outputs) if name and name not in own)


@dataclass(frozen=True)
class Graph:
    """An image classifier. Each node reads outputs of earlier nodes, weights or the input."""

    input: Port
    output: Port
    nodes: tuple[Node, ...]
    weights: Mapping[str, Array]
    opset: int
    whole_pixels: bool = False
    """Whether the file takes pixels of type uint8, 0 to 255."""

    @property
    def operators(self) -> frozenset[str]:
        """The kinds of nodes."""
        return frozenset(node.kind for node in self.nodes)

    @property
    def batch(self) -> int | None:
        """How many images the file takes at a time; None where it takes any number."""
        return self.input.shape[0]

    @property
    def channels_last(self) -> bool:
        """Whether images come as (N, H, W, C), as TensorFlow's do."""
        _, first, _, last = self.input.shape
        return first not in (1, 3) and last in (1, 3)

    @property
    def image(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width of the images."""
        _, a, b, c = self.input.shape
        return (c, a, b) if self.channels_last else (a, b, c)


def list_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes, each followed by those in its bodies."""
    for node in nodes:
        yield node
        for body in node.bodies:
            yield from list_nodes(body.nodes)


def select_needed(nodes: tuple[Node, ...], output: str) -> tuple[Node, ...]:
    """The nodes that the output depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def sort_nodes(nodes: tuple[Node, ...], known: set[str]) -> tuple[Node, ...]:
    """The nodes, each after those whose outputs it reads, otherwise as the file has them.

    Raises InvalidModel unless each value is produced once and no node needs its own output.
    """
    makers = _find_makers(nodes, known)
    for node in nodes:
        for name in node.inputs:
            if name and name not in makers and name not in known:
                raise InvalidModel(f"the {node} reads {name[:80]!r}, which nothing in the file produces")
    needs = {i: {makers[name] for name in node.inputs if name in makers} for i, node in enumerate(nodes)}
    try:
        return tuple(nodes[i] for i in _sort_stably(TopologicalSorter(needs)))
    except CycleError as error:
        raise InvalidModel(f"the {nodes[error.args[1][0]]} depends on its own output: a cycle") from None


def _find_makers(nodes: tuple[Node, ...], known: set[str]) -> dict[str, int]:
    """The position of the node that produces each value."""
    makers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in makers or name in known:
                raise InvalidModel(f"two values in the file are named {name[:80]!r}: names must be unique")
            makers[name] = i
    return makers


def _sort_stably(sorter: TopologicalSorter[int]) -> Iterator[int]:
    """Of all nodes that can be next, always the first in the file."""
    sorter.prepare()
    ready: list[int] = []
    while sorter.is_active():
        for i in sorter.get_ready():
            heappush(ready, i)
        first = heappop(ready)
        yield first
        sorter.done(first)
