"""The functions at a network's end that keep the order of its outputs: found, so that they can be removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from touchstone.models.onnx.evaluation import ShapeInference
from touchstone.models.onnx.graph import Graph, Node
from touchstone.models.output_activation import ActivationFunction, ActivationStep, find_range

MAX_REMOVED = 12
_PASSING = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast")
"""Operators that change no number; they stay in the network."""

MAX_EXPONENT = 80.0
"""Of the exponential, which is finite below this in float32."""


@dataclass(frozen=True)
class _Found:
    """A node at the end, its input that is not constant, and what it does."""

    node: Node
    source: str
    step: ActivationStep


def remove_activation(
    graph: Graph, known: Mapping[str, Tensor], inference: ShapeInference
) -> tuple[Graph, tuple[ActivationStep, ...]]:
    """The graph without the functions at its end, and these in the order in which the network applies them.

    `known` has the constants, `inference` the shapes for one image.
    """
    found = _drop_unbounded(list(_walk_back(graph, known, inference))[::-1])
    removed = {id(one.node): Node("Identity", (one.source,), one.node.outputs, {}) for one in found}
    nodes = tuple(removed.get(id(node), node) for node in graph.nodes)
    return replace(graph, nodes=nodes), tuple(one.step for one in found)


def _walk_back(graph: Graph, known: Mapping[str, Tensor], inference: ShapeInference) -> Iterator[_Found]:
    """The functions from the output back to the first node that is none, the last one first."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    node, count = makers.get(graph.output.name), 0
    while node is not None and count < MAX_REMOVED:
        sources = [name for name in node.inputs if name and name not in known]
        if len(sources) != 1 or sources[0] not in inference.shapes:
            return
        step = _recognize(node, known, inference)
        if step is not None:
            yield _Found(node, sources[0], step)
            count += 1
        elif not _passes(node, inference):
            return
        node = makers.get(sources[0])


def _drop_unbounded(found: list[_Found]) -> list[_Found]:
    """Without all up to a logarithm or an exponential that may be infinite, which must not be hidden."""
    start = 0
    for number, one in enumerate(found):
        low, high = find_range([other.step for other in found[start:number]])
        finite = {"log": 0 <= low < high < math.inf, "exp": high <= MAX_EXPONENT}
        start = start if finite.get(one.step.function, True) else number + 1
    return found[start:]


def _passes(node: Node, inference: ShapeInference) -> bool:
    made = inference.shapes.get(node.outputs[0])
    return node.kind in _PASSING and made is not None and made.is_floating_point()


def _recognize(node: Node, known: Mapping[str, Tensor], inference: ShapeInference) -> ActivationStep | None:
    """What a node does to the outputs, if it keeps their order and can be undone."""
    try:
        return _read_step(node, known, inference)
    except (TypeError, ValueError, ArithmeticError):
        return None  # its attributes are not what they should be


def _read_step(node: Node, known: Mapping[str, Tensor], inference: ShapeInference) -> ActivationStep | None:
    if node.kind in ("Softmax", "LogSoftmax"):
        function: ActivationFunction = "softmax" if node.kind == "Softmax" else "log-softmax"
        return ActivationStep(function=function) if _is_over_classes(node, inference) else None
    if node.kind in _PLAIN:
        return ActivationStep(function=_PLAIN[node.kind])
    read = _READERS.get(node.kind)
    return None if read is None else read(node, [_scalar(known, name) for name in node.inputs])


def _is_over_classes(node: Node, inference: ShapeInference) -> bool:
    """Whether a Softmax is over all outputs for one image, of which there are several."""
    shape = inference.shapes[node.inputs[0]].shape
    old = inference.opset < 13
    axis = node.attributes.get("axis", 1 if old else -1) % len(shape)
    over = shape[axis:].numel() if old else shape[axis]
    return over * inference.rows == shape.numel() > inference.rows


def _scalar(known: Mapping[str, Tensor], name: str) -> float | None:
    value = known.get(name)
    if value is None or value.numel() != 1 or value.dtype == torch.bool:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


Numbers = Sequence[float | None]
"""Of each input its number, where it is a constant that is one."""


def _read_affine(node: Node, numbers: Numbers) -> ActivationStep | None:
    """A product, quotient, sum or difference with a constant; a factor must be positive."""
    first, second = numbers
    number = first if second is None and node.kind in ("Mul", "Add") else second
    if number is None or (node.kind in ("Mul", "Div") and number <= 0):
        return None
    found = {"Mul": (number, 0.0), "Add": (1.0, number), "Sub": (1.0, -number)}
    parameters = found.get(node.kind) or (1 / number, 0.0)
    return ActivationStep(function="affine", parameters=parameters)


def _read_clip(node: Node, numbers: Numbers) -> ActivationStep | None:
    low, high = node.attributes.get("min"), node.attributes.get("max")
    for position, name in enumerate(node.inputs[1:], 1):
        number = numbers[position]
        if name and number is None:
            return None
        low, high = (number, high) if position == 1 else (low, number)
    return _clip(low, high)


def _read_bound(node: Node, numbers: Numbers) -> ActivationStep | None:
    """The smaller or larger of each output and a constant."""
    given = [number for number in numbers if number is not None]
    if len(numbers) != 2 or len(given) != 1:
        return None
    return _clip(None, given[0]) if node.kind == "Min" else _clip(given[0], None)


def _clip(low: float | None, high: float | None) -> ActivationStep | None:
    if low is not None and high is not None and low >= high:
        return None  # a constant
    return ActivationStep(function="clip", parameters=(low, high))


def _read_hard_sigmoid(node: Node, _numbers: Numbers) -> ActivationStep | None:
    slope, middle = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return ActivationStep(function="hard-sigmoid", parameters=(slope, middle)) if slope > 0 else None


_PLAIN: Mapping[str, ActivationFunction] = MappingProxyType(
    {"Sigmoid": "sigmoid", "Tanh": "tanh", "Log": "log", "Exp": "exp"}
)

_READERS: Mapping[str, Callable[[Node, Numbers], ActivationStep | None]] = MappingProxyType(
    {
        **dict.fromkeys(("Mul", "Div", "Add", "Sub"), _read_affine),
        "Clip": _read_clip,
        "Relu": lambda _node, _numbers: _clip(0.0, None),
        "HardSigmoid": _read_hard_sigmoid,
        **dict.fromkeys(("Min", "Max"), _read_bound),
    }
)
