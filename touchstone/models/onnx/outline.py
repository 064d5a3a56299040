"""What an ONNX file says of itself without its weights: inputs, outputs, operators.

Read from the fields of the file, at the cost of its structure alone and without its parser, so that any
process can look at any upload. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from touchstone.models.onnx.graph import Node, Port
from touchstone.models.protobuf import LENGTH, VARINT, Data, Field, Scanner

MAX_ENTRIES = 20_000
"""The most nodes, and the most weights, of a file that is outlined."""

MAX_NAME = 256
_FLOATS: Mapping[int, str] = MappingProxyType({1: "float32", 10: "float16", 11: "float64"})
_PIXELS = 2
_OWN_DOMAINS = ("", "ai.onnx")

# Fields by number, in ModelProto, GraphProto, NodeProto, TensorProto and ValueInfoProto.
_GRAPH, _OPSET_IMPORT = 7, 8
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_TENSOR_NAME = 8


@dataclass(frozen=True)
class Outline:
    """Nodes without their attributes, and the free inputs and the outputs, as far as these are tensors."""

    opset: int
    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def read_outline(data: Data) -> Outline:
    """The outline of a file. Raises ValueError where it is damaged, or has more than is outlined."""
    return _OutlineReader(Scanner(data)).read()


class _OutlineReader:
    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner

    def read(self) -> Outline:
        parts = self._group(None, (_GRAPH, _OPSET_IMPORT))
        if not parts[_GRAPH]:
            raise ValueError("it has no graph")
        graph = self._group(parts[_GRAPH][-1], (_NODE, _INITIALIZER, _INPUT, _OUTPUT))
        weights = {self._text(tensor, _TENSOR_NAME) for tensor in graph[_INITIALIZER]}
        ports = [self._read_port(value) for value in graph[_INPUT]]
        return Outline(
            max(map(self._read_opset, parts[_OPSET_IMPORT]), default=0),
            tuple(map(self._read_node, graph[_NODE])),
            tuple(port for port in ports if port.name not in weights),
            tuple(map(self._read_port, graph[_OUTPUT])),
        )

    def _group(self, message: Field | None, numbers: Sequence[int]) -> dict[int, list[Field]]:
        """The messages of these numbers in a message."""
        found: dict[int, list[Field]] = {number: [] for number in numbers}
        for field in self._scanner.fields(message):
            if field.number in found and field.wire == LENGTH:
                found[field.number].append(field)
                if len(found[field.number]) > MAX_ENTRIES:
                    raise ValueError("it has too many nodes or weights")
        return found

    def _texts(self, message: Field) -> dict[int, list[str]]:
        """The short fields of a message as text, by their numbers."""
        found: dict[int, list[str]] = {}
        for field in self._scanner.fields(message):
            if field.wire == LENGTH and field.end - field.content <= MAX_NAME:
                found.setdefault(field.number, []).append(self._scanner.text(field))
        return found

    def _text(self, message: Field, number: int) -> str:
        return self._texts(message).get(number, [""])[-1]

    def _integer(self, message: Field, number: int) -> int:
        fields = (one for one in self._scanner.fields(message) if (one.number, one.wire) == (number, VARINT))
        return max((value for field in fields for value in self._scanner.integers(field)), default=0)

    def _read_opset(self, message: Field) -> int:
        own = self._text(message, 1) in _OWN_DOMAINS
        return self._integer(message, 2) if own else 0

    def _read_node(self, message: Field) -> Node:
        texts = self._texts(message)
        operator, name, domain = (texts.get(number, [""])[-1] for number in (4, 3, 7))
        outputs = tuple(texts.get(2, ["?"]))
        return Node(
            operator, tuple(texts.get(1, ())), outputs, {}, name, "" if domain in _OWN_DOMAINS else domain
        )

    def _read_port(self, value: Field) -> Port:
        """An input or output; one that is no tensor has no sides."""
        tensor = self._descend(value, (2, 1))
        kind = self._integer(tensor, 1) if tensor else 0
        shape = self._descend(tensor, (2,)) if tensor else None
        sides = [self._integer(side, 1) for side in self._group(shape, (1,))[1]] if shape else []
        dtype = np.dtype(_FLOATS.get(kind, "uint8" if kind == _PIXELS else "int64"))
        return Port(self._text(value, 1), dtype, tuple(side if side > 0 else None for side in sides))

    def _descend(self, message: Field, path: Sequence[int]) -> Field | None:
        """The message at a path of numbers, where there is one."""
        found: Field | None = message
        for number in path:
            inner: Iterator[Field] = iter(self._group(found, (number,))[number])
            found = next(inner, None)
            if found is None:
                return None
        return found
