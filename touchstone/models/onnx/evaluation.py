"""Evaluation of single operators: shape inference on meta tensors, computation where the inputs are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from touchstone.errors import Failure, InvalidModel
from touchstone.models.onnx.control_flow import expand, is_control_flow, new_budget
from touchstone.models.onnx.graph import Node
from touchstone.models.onnx.randomness import is_random
from touchstone.models.onnx.registry import Operator, find_operator

MAX_VALUE_BYTES = 512 * 2**20
"""Maximum bytes of one value that the network computes from one image."""

MAX_KNOWN_BYTES = 64 * 2**20
"""Maximum bytes of all values that follow from the file alone, beyond four times the file's own, and of one
that follows from the shape of an image.
"""

META = torch.device("meta")


def operator_of(node: Node, opset: int) -> Operator:
    """The operator of this node."""
    found = find_operator(node, opset)
    if found is None:
        raise InvalidModel(f"the {node} has no meaning in opset {opset}")
    return found


def infer_shapes(
    node: Node, opset: int, known: Mapping[str, Tensor], shapes: Mapping[str, Tensor]
) -> Sequence[Tensor]:
    """The node's outputs as meta tensors; inputs that determine shapes are passed with their numbers."""
    operator = operator_of(node, opset)

    def read_argument(position: int, name: str) -> Any:
        if not name:
            return None
        if position in operator.known:
            return array_of(node, known, name)
        return shapes[name] if name in shapes else known[name].to(META)

    arguments = [read_argument(position, name) for position, name in enumerate(node.inputs)]
    with torch.no_grad(), META:
        return call(node, operator.bind(node), arguments)


def is_computable(node: Node, opset: int, known: Mapping[str, Tensor]) -> bool:
    """Whether all inputs are known, except those of which only the type matters."""
    alike = operator_of(node, opset).alike
    return all(name in known or position in alike for position, name in enumerate(node.inputs) if name)


def compute(
    node: Node,
    opset: int,
    known: Mapping[str, Tensor],
    device: torch.device,
    shapes: Mapping[str, Tensor] = MappingProxyType({}),
) -> Sequence[Tensor]:
    """The node's outputs; it is computable with what is known, and `shapes` has the types of what is not."""
    operator = operator_of(node, opset)

    def read_argument(position: int, name: str) -> Any:
        if not name:
            return None
        if position in operator.known:
            return array_of(node, known, name)
        return shapes[name] if name in shapes else known[name].to(device)

    arguments = [read_argument(position, name) for position, name in enumerate(node.inputs)]
    with torch.no_grad(), device:
        return call(node, operator.bind(node), arguments)


def array_of(node: Node, known: Mapping[str, Tensor], name: str) -> Any:
    """A value as a numpy array. Raises InvalidModel where it depends on the pixels."""
    if name not in known:
        raise InvalidModel(
            f"the {node} takes {name[:80]!r} as a shape or a bound, but it depends on the pixels"
        )
    return known[name].cpu().numpy()


def call(node: Node, function: Callable[..., Any], arguments: Sequence[Any]) -> Sequence[Tensor]:
    """The outputs of a function as a sequence; whatever goes wrong is the file's fault."""
    try:
        found = function(*arguments)
    except Failure:
        raise
    except Exception as error:  # noqa: BLE001 - PyTorch has no common type for errors of arguments
        reason = str(error).partition("\n")[0][:300]
        raise InvalidModel(f"the {node} cannot be computed: {reason or type(error).__name__}") from None
    return (found,) if isinstance(found, Tensor) else tuple(found)


def check_size(node: Node, values: Sequence[Tensor], limit: int) -> None:
    """Raise InvalidModel where a value has more bytes than that."""
    for value in values:
        if value.numel() * value.element_size() > limit:
            raise InvalidModel(
                f"the {node} gives a value of shape {tuple(value.shape)}, larger than {limit >> 20} MiB"
            )


def fold_constants(nodes: Sequence[Node], opset: int, known: dict[str, Tensor]) -> list[Node]:
    """Compute every node that depends on the file alone, adding to `known`; the nodes that are left."""
    folding = _Folding(opset, known)
    for node in nodes:
        folding.run(node)
    return folding.left


class _Folding:
    """Constants so far, the nodes that are left, and the bytes that more constants may have."""

    def __init__(self, opset: int, known: dict[str, Tensor]) -> None:
        self.left: list[Node] = []
        self._opset, self._known, self._turns = opset, known, new_budget()
        self._budget = 4 * sum(value.nbytes for value in known.values()) + MAX_KNOWN_BYTES

    def run(self, node: Node) -> None:
        """Compute a node, or leave it."""
        deciding = node.inputs[:1] if node.kind == "If" else node.inputs
        if is_random(node, self._opset, self._known) or any(
            name and name not in self._known for name in deciding
        ):
            self.left.append(node)
        elif is_control_flow(node):
            for inner in expand(node, self._known, self._turns):
                self.run(inner)
        else:
            self._compute(node)

    def _compute(self, node: Node) -> None:
        inferred = infer_shapes(node, self._opset, self._known, {})
        check_size(node, inferred, self._budget)
        self._budget -= sum(value.nbytes for value in inferred)
        values = compute(node, self._opset, self._known, torch.device("cpu"))
        self._known.update(_name_outputs(node, values))


def _name_outputs(node: Node, values: Sequence[Tensor]) -> dict[str, Tensor]:
    if len(values) < len(node.outputs):
        raise InvalidModel(f"the {node} has {len(node.outputs)} outputs; {len(values)} are possible")
    return {name: value for name, value in zip(node.outputs, values, strict=False) if name}


class ShapeInference:
    """The values of a network for an input of one shape.

    `known` has the values that follow from the file and from that shape, `shapes` the others as meta tensors,
    `remaining` the nodes that compute them; `bytes` is the size of all together, `rows` the number of images.
    """

    def __init__(self, opset: int, known: Mapping[str, Tensor], entry: str, x: Tensor) -> None:
        self.opset = opset
        self.known = dict(known)
        self.shapes: dict[str, Tensor] = {entry: x.to(META)}
        self.remaining: list[Node] = []
        self.random_nodes: list[Node] = []
        self._turns = new_budget()
        self._device = torch.device("cpu") if x.is_meta else x.device
        self.rows = max(1, len(x))
        self.bytes = 0

    def run(self, nodes: Sequence[Node]) -> ShapeInference:
        """Infer the shapes of nodes in their order."""
        for node in nodes:
            self._run_node(node)
        return self

    def _run_node(self, node: Node) -> None:
        if is_control_flow(node):
            for inner in expand(node, self.known, self._turns):
                self._run_node(inner)
            return
        values = infer_shapes(node, self.opset, self.known, self.shapes)
        drawn = is_random(node, self.opset, self.known)
        if not drawn and is_computable(node, self.opset, self.known):
            check_size(node, values, self.rows * MAX_KNOWN_BYTES)
            values = compute(node, self.opset, self.known, self._device, self.shapes)
        check_size(node, values, self.rows * MAX_VALUE_BYTES)
        self.bytes += sum(value.nbytes for value in values)
        named = _name_outputs(node, values)
        unknown = {name: value for name, value in named.items() if value.is_meta}
        self.known.update({name: value for name, value in named.items() if not value.is_meta})
        self.shapes.update(unknown)
        if unknown:
            self.remaining.append(node)
        if drawn:
            self.random_nodes.append(node)
