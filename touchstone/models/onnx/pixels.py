"""Networks of whole pixels: an input of type uint8, taken as floats, which have a gradient. Never imports
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from touchstone.errors import InvalidModel
from touchstone.models.manifest import Manifest
from touchstone.models.onnx.graph import Graph, Node

WHITE = 255
TOLERANCE = 1e-4

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT16)
"""Types that hold every pixel."""
_MOVES = {
    *("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad"),
    *("Slice", "Split", "Concat", "Gather", "DepthToSpace", "SpaceToDepth"),
}
"""Operators that move pixels and do not change them."""


def take_as_floats(graph: Graph) -> Graph:
    """The same network for pixels 0 to 255 of type float32.

    Raises InvalidModel where something is computed with them before they are cast to floats.
    """
    nodes = tuple(_replace_casts(graph))
    return replace(graph, input=replace(graph.input, dtype=np.dtype("float32")), nodes=nodes)


def _replace_casts(graph: Graph) -> Iterator[Node]:
    """The nodes, without the casts that pixels of type float32 do not need."""
    whole = {graph.input.name}
    for node in graph.nodes:
        target = node.attributes.get("to") if node.kind == "Cast" else None
        if whole.isdisjoint(node.inputs) or target in _OTHER_FLOATS or node.kind in ("Shape", "Size"):
            yield node
        elif target in (TensorProto.FLOAT, *_INTEGERS):
            whole.update(node.outputs if target in _INTEGERS else ())
            yield Node("Identity", node.inputs, node.outputs, {}, node.name)
        elif node.kind in _MOVES and (node.kind == "Concat" or whole.isdisjoint(node.inputs[1:])):
            whole.update(node.outputs)
            yield node
        else:
            raise InvalidModel(
                f"the input is of type uint8, and the {node} computes with it: that has no gradient. Cast "
                "the input to float first, or export the network with a float input"
            )


def scale_pixels(graph: Graph, manifest: Manifest) -> Graph:
    """The graph with pixels in [0,1] multiplied by 255, unless the manifest does so.

    Raises InvalidModel where the manifest gives any other normalization.
    """
    black = [-mean / std for mean, std in zip(manifest.mean, manifest.std, strict=True)]
    white = [level + 1 / std for level, std in zip(black, manifest.std, strict=True)]
    if np.allclose([black, white], [[0], [WHITE]], atol=TOLERANCE):
        return graph
    if not np.allclose([black, white], [[0], [1]], atol=TOLERANCE):
        raise InvalidModel(
            f"the file takes pixels from 0 to {WHITE} (uint8) and normalizes them itself; with this mean, "
            f"std or range it would get {min(black):g} to {max(white):g}: leave them out",
            field="range",
        )
    return _multiply_input(graph, WHITE)


def _multiply_input(graph: Graph, factor: float) -> Graph:
    name = graph.input.name
    entry, constant = f"{name} in [0,1]", f"{name} white"
    node = Node("Mul", (entry, constant), (name,), {})
    weights = {**graph.weights, constant: np.array(factor, graph.input.dtype)}
    return replace(graph, input=replace(graph.input, name=entry), nodes=(node, *graph.nodes), weights=weights)
