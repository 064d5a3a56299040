"""Which nodes draw random numbers, so that their outputs are no constants."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from touchstone.models.onnx.graph import Node

RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"))


def is_random(node: Node, opset: int, known: Mapping[str, Tensor]) -> bool:
    """Whether a node draws random numbers."""
    if node.kind != "Dropout":
        return node.kind in RANDOM
    if opset < 7:
        return not node.attributes.get("is_test", 0) and bool(node.attributes.get("ratio", 0.5))
    ratio, training = (known.get(name) for name in (*node.inputs[1:], "", "")[:2])
    return training is not None and bool(training.any()) and (ratio is None or bool(ratio.any()))
