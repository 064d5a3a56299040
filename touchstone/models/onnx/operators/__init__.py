"""All operators, grouped by what they do. Importing this registers them."""

from touchstone.models.onnx.operators import (
    activations,
    arithmetic,
    constants,
    convolution,
    fused,
    indexing,
    legacy,
    matrices,
    normalization,
    pooling,
    quantization,
    random,
    recurrent,
    reduction,
    resize,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "constants",
    "convolution",
    "fused",
    "indexing",
    "legacy",
    "matrices",
    "normalization",
    "pooling",
    "quantization",
    "random",
    "recurrent",
    "reduction",
    "resize",
    "shapes",
]
