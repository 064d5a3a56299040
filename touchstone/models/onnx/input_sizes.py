"""Layout and size of a network's images, in its file and in the manifest. Never imports torch."""

from __future__ import annotations

from dataclasses import replace

from touchstone.errors import InvalidModel
from touchstone.models.manifest import InputSpec
from touchstone.models.onnx.graph import Graph


def fix_sizes(graph: Graph, spec: InputSpec) -> Graph:
    """The graph with the manifest's sizes in place of open ones. Raises InvalidModel where it has others."""
    _check_layout(graph, spec)
    sizes = {"channels": spec.channels, "height": spec.height, "width": spec.width}
    names = ("height", "width", "channels") if spec.layout == "nhwc" else tuple(sizes)
    for name, found in zip(names, graph.input.shape[1:], strict=True):
        if found not in (None, sizes[name]):
            raise InvalidModel(
                f"input.{name}: the file takes images of shape {graph.input.format_shape()}, so it is "
                f"{found}, not {sizes[name]}",
                field=f"input.{name}",
            )
    shape = (graph.input.shape[0], *(sizes[name] for name in names))
    return replace(graph, input=replace(graph.input, shape=shape))


def _check_layout(graph: Graph, spec: InputSpec) -> None:
    """Raise InvalidModel where the channels can only be elsewhere than the manifest says."""
    _, first, _, last = graph.input.shape
    sides = {"nchw": first, "nhwc": last}
    certain = [layout for layout, side in sides.items() if side in (1, 3)][:1]
    possible = certain or [layout for layout, side in sides.items() if side is None] or ["nchw"]
    if spec.layout not in possible:
        raise InvalidModel(
            f"input.layout: the file takes images of shape {graph.input.format_shape()}: its layout is "
            f"{possible[0]}",
            field="input.layout",
        )
