"""What can be seen in a file without running its network, so that no trial is needed to refuse it."""

from __future__ import annotations

from collections.abc import Sequence

from touchstone.errors import InvalidModel
from touchstone.models.manifest import ONNX, Manifest
from touchstone.models.onnx.graph import Graph, Node, Port
from touchstone.models.onnx.input_sizes import fix_sizes
from touchstone.models.onnx.outline import Outline, read_outline
from touchstone.models.onnx.output_choice import choose_output
from touchstone.models.protobuf import Data

_IMAGE_RANK = 4


def check_file(manifest: Manifest, data: Data) -> None:
    """Raise InvalidModel where an ONNX file says that it takes other images, or answers other classes."""
    if (outline := _outline(manifest, data)) is None or len(outline.inputs) != 1:
        return
    output = choose_output(outline.outputs, manifest.output, len(manifest.classes))
    if len(outline.inputs[0].shape) == _IMAGE_RANK:
        fix_sizes(Graph(outline.inputs[0], output, (), {}, outline.opset), manifest.input)
    _check_classes(output, len(manifest.classes))


def check_operators(manifest: Manifest, data: Data) -> None:
    """Raise UnsupportedOperator where the output of an ONNX file needs an operator that is not supported."""
    from touchstone.models.onnx import operators, registry  # noqa: F401, PLC0415 - they load torch

    if (outline := _outline(manifest, data)) is None:
        return
    output = choose_output(outline.outputs, manifest.output, len(manifest.classes))
    registry.check_supported(_find_needed(outline.nodes, output.name), outline.opset)


def _find_needed(nodes: Sequence[Node], output: str) -> list[Node]:
    """The nodes that the output depends on, in the order of the file, which need not be sorted."""
    makers = {name: node for node in nodes for name in node.outputs}
    needed, waiting = set[int](), [output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            waiting += node.inputs
    return [node for node in nodes if id(node) in needed]


def _outline(manifest: Manifest, data: Data) -> Outline | None:
    """The outline of an ONNX file; None for any other, and for one whose faults the trial tells better."""
    if manifest.architecture != ONNX:
        return None
    try:
        return read_outline(data)
    except ValueError:
        return None


def _check_classes(output: Port, classes: int) -> None:
    """Raise InvalidModel where the output states another number of logits than the classes need."""
    sides = [side for side in output.shape[1:] if side != 1]
    known = output.dtype.kind == "f" and len(output.shape) > 1 and len(sides) <= 1 and None not in sides
    found = sides[0] if sides else 1
    if known and found != classes and (found, classes) != (1, 2):
        raise InvalidModel(
            f"classes: the network answers {found} numbers, but {classes} classes are named", field="classes"
        )
