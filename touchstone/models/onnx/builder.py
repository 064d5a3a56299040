"""From a graph to a network, which is run once to check sizes, batches and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from touchstone.errors import InvalidModel
from touchstone.models.onnx import operators  # noqa: F401 - importing registers them
from touchstone.models.onnx.draft import Draft
from touchstone.models.onnx.evaluation import ShapeInference, fold_constants
from touchstone.models.onnx.final_functions import remove_activation
from touchstone.models.onnx.fusion import fuse
from touchstone.models.onnx.graph import Graph, Node
from touchstone.models.onnx.network import Network
from touchstone.models.onnx.operations import FlopCounter
from touchstone.models.onnx.operators.normalization import check_eval_mode
from touchstone.models.onnx.operators.quantization import ROUNDING
from touchstone.models.onnx.registry import check_supported
from touchstone.models.output_activation import ActivationStep

MAX_FLOPS = 2 * 10**12
"""Maximum operations of the network for one image; a ViT-L at 384 pixels takes a fifth of it."""

MAX_TOTAL_BYTES = 8 * 2**30
"""Maximum bytes of all values that the network computes from one image."""


@dataclass(frozen=True)
class ImportedModel:
    """A network with its properties: `batch` is how many rows it takes at a time, None for any; `activation`
    was removed from its end.
    """

    module: Network
    classes: int
    activation: tuple[ActivationStep, ...]
    batch: int | None
    quantized: bool


def build(
    graph: Graph,
    *,
    size: tuple[int, int] | None = None,
    randomized: bool = False,
    straight_through: bool = False,
) -> ImportedModel:
    """The network of a graph, in eval mode and frozen: images (N, C, H, W) in, logits (N, K) out.

    `size` is the height and width to try it with where the file leaves them open. What keeps the order of the
    outputs at its end, such as a Softmax, is removed. `randomized` permits, and expects, operators that draw
    random numbers; `straight_through` lets rounding to integers pass gradients on. Raises
    UnsupportedOperator, and InvalidModel where the nodes do not fit together or do not make a classifier of
    images that can be differentiated.
    """
    check_supported(graph.nodes, graph.opset)
    example = _example_image(graph, size)
    known: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in graph.weights.items()}
    nodes = fold_constants(graph.nodes, graph.opset, known)
    check_eval_mode(nodes)
    quantized = any(node.kind in ROUNDING for node in nodes)
    nodes = [_pass_gradients(node) for node in nodes] if straight_through else nodes
    graph = replace(graph, nodes=tuple(nodes))
    inference = _infer_shapes(graph, known, _to_layout(example, graph))
    _check_randomness(inference, randomized=randomized)
    classes = _count_classes(inference, graph)
    graph, activation = remove_activation(graph, known, inference)
    draft = Draft(graph.nodes, known, inference.shapes, output=graph.output.name, opset=graph.opset)
    module = Network(
        fuse(draft).nodes,
        draft.known,
        entry=graph.input.name,
        output=graph.output.name,
        opset=graph.opset,
        dtype=example.dtype,
        channels_last=graph.channels_last,
        randomized=randomized,
    )
    module.eval().requires_grad_(False)
    batched = not _is_dynamic(nodes) and _accepts_batches(module, example, classes)
    module.batch = graph.batch or (None if batched else 1)
    _check_gradient(module, example)
    return ImportedModel(module, classes, activation, module.batch, quantized)


def _pass_gradients(node: Node) -> Node:
    """The same node, whose rounding passes gradients on."""
    if node.kind not in ROUNDING:
        return node
    return replace(node, attributes={**node.attributes, "straight_through": 1})


def _is_dynamic(nodes: Sequence[Node]) -> bool:
    """Whether rounding depends on all rows of a batch, so that a row alone has another answer."""
    return any(node.kind == "DynamicQuantizeLinear" for node in nodes)


def _example_image(graph: Graph, size: tuple[int, int] | None) -> Tensor:
    """A gray image of the network's input size, or so many as the file takes at a time."""
    channels, height, width = graph.image
    if height is None or width is None:
        if size is None:
            raise InvalidModel(
                "the file leaves the height and width of images open: specify them", field="input"
            )
        height, width = height or size[0], width or size[1]
    if channels not in (1, 3):
        raise InvalidModel(f"the network takes images of {channels} channels; it must be 1 or 3")
    if size is not None and size != (height, width):
        raise InvalidModel(
            f"the network takes images of {height}x{width}, not {size[0]}x{size[1]}", field="input"
        )
    dtype = torch.from_numpy(np.zeros(0, graph.input.dtype)).dtype
    return torch.full((graph.batch or 1, channels, height, width), 0.5, dtype=dtype)


def _infer_shapes(graph: Graph, known: dict[str, Tensor], x: Tensor) -> ShapeInference:
    """Shapes for one image; raises where it costs more than allowed."""
    with FlopCounter() as counter:
        inference = ShapeInference(graph.opset, known, graph.input.name, x).run(graph.nodes)
    if counter.total > MAX_FLOPS or inference.bytes > MAX_TOTAL_BYTES:
        raise InvalidModel(
            f"one pass costs {counter.total:.1e} operations and {inference.bytes >> 30} GiB of values; "
            f"at most {MAX_FLOPS:.0e} and {MAX_TOTAL_BYTES >> 30} GiB are allowed"
        )
    return inference


def _check_randomness(inference: ShapeInference, *, randomized: bool) -> None:
    """Raise InvalidModel unless the network draws random numbers just where the manifest says so."""
    if inference.random_nodes and not randomized:
        raise InvalidModel(
            f"the {inference.random_nodes[0]} makes the network answer at random: call eval() before the "
            "export, or, if that is its defence, set randomized to true in the manifest",
            field="randomized",
        )
    if randomized and not inference.random_nodes:
        raise InvalidModel(
            "randomized: no operator of the network draws random numbers; leave this out", field="randomized"
        )


def _to_layout(x: Tensor, graph: Graph) -> Tensor:
    return x.permute(0, 2, 3, 1) if graph.channels_last else x


def _count_classes(inference: ShapeInference, graph: Graph) -> int:
    """The number of logits for an image."""
    output = inference.shapes.get(graph.output.name)
    if output is None:
        raise InvalidModel("the output depends only on the shape of the image, not on its pixels")
    shape = tuple(output.shape)
    if not output.is_floating_point():
        raise InvalidModel(f"the output is of type {output.dtype}; it must be logits, not the class alone")
    rows = inference.rows
    classes = max(shape if rows == 1 else shape[1:], default=1)
    if output.numel() != rows * classes:
        raise InvalidModel(
            f"for a batch of {rows} the output has the shape {shape}; a classifier gives ({rows}, K)"
        )
    return classes


def _accepts_batches(module: Network, example: Tensor, classes: int) -> bool:
    """Whether a batch of two images gives two rows of logits."""
    pair = torch.empty((2, *example.shape[1:]), dtype=example.dtype, device="meta")
    try:
        inference = module.infer_shapes(pair.permute(0, 2, 3, 1) if module.channels_last else pair)
    except InvalidModel:
        return False
    output = inference.shapes.get(module.output)
    return output is not None and output.shape[0] == 2 and output.numel() == 2 * classes


def _check_gradient(module: Network, example: Tensor) -> None:
    """Run the network and its gradient once, since PyTorch may reject what shape inference accepts."""
    x = example.clone().requires_grad_()
    logits = module(x)
    if not logits.requires_grad:
        raise InvalidModel("the output has no gradient with respect to the image")
    try:
        torch.autograd.grad(logits.sum(), x)
    except RuntimeError as error:
        raise InvalidModel(f"the network cannot be differentiated: {str(error)[:300]}") from None
