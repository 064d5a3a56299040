"""Replaces chains of convolutions, with clamps and skip connections, by a `Trunk` that runs them fused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from touchstone.models.fused.stages import FrozenConv, Stage
from touchstone.models.fused.trunk import Trunk
from touchstone.models.onnx.draft import Draft
from touchstone.models.onnx.graph import Node


@dataclass
class Chain:
    """Stages found so far, their nodes, and their output value."""

    end: str
    stages: list[Stage] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def extend(self, links: list[Link], skip: Node | None) -> None:
        """Add a stage; `skip` is the sum of its input and its output."""
        self.stages.append(Stage(*(link.conv for link in links), skip=skip is not None))
        self.nodes += [node for link in links for node in link.nodes]
        self.nodes += [] if skip is None else [skip]
        self.end = self.nodes[-1].outputs[0]


@dataclass(frozen=True)
class Link:
    """A convolution and the clamp after it, if there is one."""

    conv: FrozenConv
    nodes: tuple[Node, ...]

    @property
    def end(self) -> str:
        """The output value."""
        return self.nodes[-1].outputs[0]


def fuse_chains(draft: Draft) -> None:
    """Replace every chain of at least two convolutions by a trunk."""
    trunks: dict[int, Node] = {}  # by the last node of each chain
    seen: set[int] = set()
    for node in draft.nodes:
        chain = _longest_chain(draft, node) if node.kind == "Conv" and id(node) not in seen else Chain("")
        if sum(len(list(stage)) for stage in chain.stages) > 1:
            seen.update(map(id, chain.nodes))
            attributes = {"module": Trunk(*chain.stages)}
            trunks[id(chain.nodes[-1])] = Node(
                "Trunk", node.inputs[:1], (chain.end,), attributes, "", "fused"
            )
    draft.set([trunks.get(id(node), node) for node in draft.nodes])


def _longest_chain(draft: Draft, first: Node) -> Chain:
    """The longest chain that starts with this convolution."""
    chain = Chain(first.inputs[0])
    links, skip = _stage(draft, first.inputs[0], first)
    while links:
        chain.extend(links, skip)
        links, skip = _stage(draft, chain.end, _next_conv(draft, chain.end))
    return chain


def _next_conv(draft: Draft, name: str) -> Node | None:
    """The convolution that reads a value, alone or beside the sum of a skip connection."""
    users = draft.users(name)
    convs = [user for user in users if user.kind == "Conv" and user.inputs[0] == name]
    rest = [user.kind for user in users if user not in convs]
    return convs[0] if len(convs) == 1 and rest in ([], ["Add"]) else None


def _stage(draft: Draft, start: str, conv: Node | None) -> tuple[list[Link], Node | None]:
    """The stage that starts with this convolution, and the sum that ends it; empty where there is none."""
    first = None if conv is None else _link(draft, conv)
    if first is None:
        return [], None
    adds = [user for user in draft.users(start) if user.kind == "Add"]
    if len(draft.users(start)) == 2 and len(adds) == 1:
        links = _links_until(draft, first, adds[0])
        if links and _keeps_shape(draft, start, links[-1].end):
            return links, adds[0]
        return [], None
    return [first], None


def _links_until(draft: Draft, first: Link, add: Node) -> list[Link]:
    """The links from the first to this sum; none where another operator stands between."""
    links = [first]
    while (user := draft.only_user(links[-1].end)) is not add:
        following = _link(draft, user) if user is not None and user.kind == "Conv" else None
        if following is None:
            return []
        links.append(following)
    return links if links[-1].conv.ceiling is None else []


def _keeps_shape(draft: Draft, start: str, end: str) -> bool:
    return draft.shape(start) == draft.shape(end) != torch.Size()


def _link(draft: Draft, node: Node) -> Link | None:
    """This convolution as a frozen one with the clamp that follows, if it has a supported form."""
    parts = _parts(draft, node)
    if parts is None:
        return None
    after = draft.only_user(node.outputs[0])
    ceiling = None if after is None else clamp_ceiling(after, draft)
    weight, bias, padding = parts
    conv = FrozenConv(
        weight,
        bias,
        stride=node.attributes.get("strides", (1, 1))[0],
        padding=padding,
        groups=node.attributes.get("group", 1),
        ceiling=ceiling,
    )
    return Link(conv, (node,) if after is None or ceiling is None else (node, after))


def _parts(draft: Draft, node: Node) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """Square weights, bias and the padding of all sides, if the convolution can be written so."""
    weight = draft.known.get(node.inputs[1])
    bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
    if (
        weight is None
        or weight.ndim != 4
        or weight.dtype != torch.float32
        or (bias_name and bias_name not in draft.known)
    ):
        return None
    strides, dilations = node.attributes.get("strides", (1, 1)), node.attributes.get("dilations", (1, 1))
    top, left, bottom, right = node.attributes.get("pads") or (0, 0, 0, 0)
    square = (
        weight.shape[2] == weight.shape[3] and strides[0] == strides[1] and (top, bottom) == (left, right)
    )
    if not square or set(dilations) != {1} or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    # Padding that is wider on one side: zeros on the other side of the kernel make it symmetric.
    before, after = max(bottom - top, 0), max(top - bottom, 0)
    if before or after:
        weight = functional.pad(weight, (before, after, before, after))
    bias = draft.known[bias_name] if bias_name else torch.zeros(len(weight))
    return weight, bias, max(top, bottom)


def clamp_ceiling(node: Node, draft: Draft) -> float | None:
    """The upper bound of a ReLU or ReLU6, whose gradient at the bounds is 0; None for any other node."""
    if node.kind == "Relu":
        return math.inf
    if node.kind != "Clip":
        return None
    if len(node.inputs) > 1:
        bounds = [draft.scalar(name) if name else None for name in (*node.inputs[1:], "")[:2]]
    else:
        bounds = [node.attributes.get("min"), node.attributes.get("max", math.inf)]
    low, high = bounds
    return high if (low, high) == (0, 6) else None
