"""A network while it is rewritten: producers and users of values, and constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from touchstone.models.onnx.graph import Node, select_needed

RewriteRule = Callable[["Draft", Node], "Node | None"]


class Draft:
    """Nodes in order with the constants they read; `shapes` holds meta tensors of one image's values."""

    def __init__(
        self,
        nodes: Sequence[Node],
        known: dict[str, Tensor],
        shapes: Mapping[str, Tensor],
        *,
        output: str,
        opset: int,
    ) -> None:
        self.known, self.shapes, self.output, self.opset = known, shapes, output, opset
        self.set(nodes)

    def set(self, nodes: Sequence[Node]) -> None:
        """Replace the nodes by these, without those that the output does not depend on."""
        self.nodes = select_needed(tuple(nodes), self.output)
        self.producers = {name: node for node in self.nodes for name in node.outputs}
        self._users: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in set(node.inputs):
                self._users[name].append(node)

    def rewrite(self, rule: RewriteRule) -> None:
        """Replace each node by the one that the rule returns for it, if any: it has equal outputs."""
        nodes = []
        for node in self.nodes:
            new = rule(self, node) or node
            self.producers.update(dict.fromkeys(new.outputs, new))
            nodes.append(new)
        self.set(nodes)

    def users(self, name: str) -> list[Node]:
        """The nodes that read a value; none for the network's output, which must not be fused away."""
        return [] if name == self.output else self._users.get(name, [])

    def only_user(self, name: str) -> Node | None:
        """The node that reads a value, if it is only one."""
        users = self.users(name)
        return users[0] if len(users) == 1 else None

    def add_constant(self, value: Tensor, like: str) -> str:
        """Add a constant; returns its name, derived from `like`."""
        name = f"{like}'"
        while name in self.known or name in self.producers:
            name += "'"
        self.known[name] = value
        return name

    def shape(self, name: str) -> torch.Size:
        """The shape of a value for one image; empty where it is not known."""
        return self.shapes[name].shape if name in self.shapes else torch.Size()

    def scalar(self, name: str) -> float | None:
        """The number of a scalar constant; None for any other value."""
        value = self.known.get(name)
        if value is None or value.numel() != 1 or value.dtype == torch.bool:
            return None
        return float(value)
