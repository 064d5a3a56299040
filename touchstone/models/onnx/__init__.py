"""ONNX classifiers as PyTorch modules with gradients, without running code that came with them.

`read` checks the file's structure and needs no PyTorch; `build` makes the module and runs it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from touchstone.models.onnx.graph import Graph

if TYPE_CHECKING:
    from touchstone.models.onnx.builder import ImportedModel

__all__ = ["Graph", "build", "read"]


def read(data: bytes, *, output: str | None = None, classes: int | None = None) -> Graph:
    """The graph in a file: see `touchstone.models.onnx.reader.read`."""
    from touchstone.models.onnx import reader  # noqa: PLC0415 - so that looking at a file needs no parser

    return reader.read(data, output=output, classes=classes)


def build(graph: Graph, *, size: tuple[int, int] | None = None, **options: bool) -> ImportedModel:
    """The module of a graph: see `touchstone.models.onnx.builder.build`."""
    from touchstone.models.onnx import builder  # noqa: PLC0415 - so that reading needs no PyTorch

    return builder.build(graph, size=size, **options)
