"""What a network takes, where its file leaves it open and the manifest says it. Never imports torch."""

from __future__ import annotations

from touchstone.models.manifest import Manifest
from touchstone.models.onnx.graph import Graph
from touchstone.models.onnx.input_sizes import fix_sizes
from touchstone.models.onnx.pixels import scale_pixels


def fit_input(graph: Graph, manifest: Manifest) -> Graph:
    """The graph for normalized images as the manifest describes them. Raises InvalidModel where it cannot."""
    graph = fix_sizes(graph, manifest.input)
    return scale_pixels(graph, manifest) if graph.whole_pixels else graph
