"""If and Loop where shapes and weights decide them: replaced by the nodes that they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from touchstone.errors import InvalidModel, UnsupportedOperator
from touchstone.models.onnx.graph import CONTROL_FLOW, Node, Subgraph

MAX_UNROLLED = 100_000
"""Maximum nodes that all loops of a network run, each turn counted as one more."""


def is_control_flow(node: Node) -> bool:
    """Whether a node runs others."""
    return node.kind in CONTROL_FLOW


def expand(node: Node, known: dict[str, Tensor], budget: Iterator[int]) -> Iterator[Node]:
    """The nodes that an If or a Loop runs, in their order.

    What follows from a node must be in `known` before the next one is drawn. Every node of a loop takes one
    from the budget. Raises UnsupportedOperator where the pixels decide, InvalidModel where it runs too long.
    """
    return _expand_if(node, known) if node.kind == "If" else _expand_loop(node, known, budget)


def new_budget() -> Iterator[int]:
    """What the loops of one network may spend."""
    return iter(range(MAX_UNROLLED))


def _expand_if(node: Node, known: Mapping[str, Tensor]) -> Iterator[Node]:
    taken = "then_branch" if _decide(node, "".join(node.inputs[:1]), known) else "else_branch"
    branch = _body(node, taken)
    if len(node.outputs) > len(branch.outputs):
        raise InvalidModel(f"the {node} does not fit its {taken}")
    yield from branch.nodes
    yield from _copy(branch.outputs, node.outputs)


def _expand_loop(node: Node, known: dict[str, Tensor], budget: Iterator[int]) -> Iterator[Node]:
    body = _body(node, "body")
    _check_fit(node, body)
    (limit, going), carried = node.inputs[:2], node.inputs[2 : len(body.inputs)]
    turns = _read_known(node, limit, known) if limit else MAX_UNROLLED
    rows: list[tuple[str, ...]] = []
    while len(rows) < turns and (not going or _decide(node, going, known)):
        names = _name_turn(node, body, len(rows), carried, known)
        _spend(node, budget)
        for inner in body.nodes:
            _spend(node, budget)
            yield rename(inner, names)
        going, *values = (names.get(name, name) for name in body.outputs)
        carried = tuple(values[: len(carried)])
        rows.append(tuple(values[len(carried) :]))
    yield from _copy(carried, node.outputs)
    yield from _stack(node, node.outputs[len(carried) :], rows)


def _check_fit(node: Node, body: Subgraph) -> None:
    """Raise InvalidModel unless a loop has an input for each of its body's, and that an output for each."""
    inputs = 2 <= len(body.inputs) <= len(node.inputs)
    if not inputs or len(body.outputs) < max(len(body.inputs), len(node.outputs) + 1) - 1:
        raise InvalidModel(f"the {node} does not fit its body")


def _spend(node: Node, budget: Iterator[int]) -> None:
    if next(budget, None) is None:
        raise InvalidModel(f"the loops run more than {MAX_UNROLLED:,} nodes, of which the {node} is the last")


def _name_turn(
    node: Node, body: Subgraph, turn: int, carried: tuple[str, ...], known: dict[str, Tensor]
) -> dict[str, str]:
    """New names for what the body reads and computes in this turn, of which count and condition are known."""
    mark = f"{max(node.outputs)} turn {turn}"
    known[f"{mark} count"], known[f"{mark} going"] = torch.tensor(turn), torch.tensor(True)
    inner = {name: f"{mark} {name}" for name in find_made(body.nodes)}
    return inner | dict(zip(body.inputs, (f"{mark} count", f"{mark} going", *carried), strict=True))


def find_made(nodes: Iterable[Node]) -> set[str]:
    """The names of all values that nodes compute, those within their bodies, too."""
    nodes = tuple(nodes)
    inner = (find_made(body.nodes) for node in nodes for body in node.bodies)
    return {name for node in nodes for name in node.outputs if name}.union(*inner)


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other names for its inputs and outputs, and within its bodies."""

    def change(some: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(name, name) for name in some)

    def change_body(body: Subgraph) -> Subgraph:
        nodes = tuple(rename(inner, names) for inner in body.nodes)
        return Subgraph(change(body.inputs), change(body.outputs), nodes)

    attributes: dict[str, Any] = {
        name: change_body(value) if isinstance(value, Subgraph) else value
        for name, value in node.attributes.items()
    }
    return replace(node, inputs=change(node.inputs), outputs=change(node.outputs), attributes=attributes)


def _copy(values: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Node]:
    """Nodes that give values other names; a name "" is not wanted."""
    for value, name in zip(values, names, strict=False):
        if name:
            yield Node("Identity", (value,), (name,), {})


def _stack(node: Node, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[Node]:
    """Nodes that stack the values of all turns, one for each name."""
    for place, name in enumerate(names):
        if name and not rows:
            raise InvalidModel(f"the {node} takes no turn, so the shape of its output {name[:80]!r} is open")
        if name:
            yield Node("Stack", tuple(row[place] for row in rows), (name,), {}, domain="fused")


def _body(node: Node, name: str) -> Subgraph:
    body = node.attributes.get(name)
    if not isinstance(body, Subgraph):
        raise InvalidModel(f"the {node} has no {name}")
    return body


def _decide(node: Node, name: str, known: Mapping[str, Tensor]) -> bool:
    return bool(_read_known(node, name, known))


def _read_known(node: Node, name: str, known: Mapping[str, Tensor]) -> int:
    if name not in known or known[name].numel() != 1:
        raise UnsupportedOperator(
            f"the {node} cannot be imported: the pixels decide what it runs; export by tracing",
            operators=[node.kind],
        )
    return int(known[name].item())
