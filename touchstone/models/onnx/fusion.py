"""Operator fusion: patterns of a few nodes, and the faster nodes that replace them."""

from __future__ import annotations

import math

import torch

from touchstone.models.onnx.chains import clamp_ceiling, fuse_chains
from touchstone.models.onnx.draft import Draft
from touchstone.models.onnx.graph import Node
from touchstone.models.onnx.patterns import Call, Capture, LastMean, Number, OneOf, match

X = Capture("x")

SILU = Call("Mul", X, Call("Sigmoid", X))

HARD_SWISH = Call("Mul", X, Call("HardSigmoid", X))

_ERF = Call("Erf", OneOf(Call("Div", X, Number(math.sqrt(2))), Call("Mul", X, Number(math.sqrt(0.5)))))
_ONE_MORE, _HALF = Call("Add", _ERF, Number(1.0)), Number(0.5)
GELU = OneOf(
    Call("Mul", Call("Mul", X, _ONE_MORE), _HALF),
    Call("Mul", Call("Mul", X, _HALF), _ONE_MORE),
    Call("Mul", X, Call("Mul", _ONE_MORE, _HALF)),
)

_CENTRED = Call("Sub", X, LastMean(X))
_SQUARE = OneOf(Call("Pow", _CENTRED, Number(2.0)), Call("Mul", _CENTRED, _CENTRED))
_DEVIATION = Call("Sqrt", Call("Add", LastMean(_SQUARE), Capture("epsilon", known=True)))
LAYER_NORM = Call(
    "Add",
    Call("Mul", Call("Div", _CENTRED, _DEVIATION), Capture("scale", known=True)),
    Capture("bias", known=True),
)

LINEAR = Call("Add", Call("MatMul", X, Capture("weight", known=True)), Capture("bias", known=True))

_OVERWRITABLE = ("Conv", "Add", "BatchNormalization", "Gemm", "fused.Linear")
"""Operators whose output is a new tensor that their gradient does not need, so it may be overwritten."""


def fuse(draft: Draft) -> Draft:
    """Rewrite a network; its outputs stay equal up to rounding."""
    for rule in (_pad_conv, _norm_conv, _silu, _hard_swish, _gelu, _layer_norm, _linear):
        draft.rewrite(rule)
    fuse_chains(draft)
    draft.rewrite(_clamp)
    return draft


def _silu(draft: Draft, node: Node) -> Node | None:
    found = match(SILU, node.outputs[0], draft) if node.kind == "Mul" else None
    return None if found is None else _fused_node("Silu", node, found["x"])


def _hard_swish(draft: Draft, node: Node) -> Node | None:
    found = match(HARD_SWISH, node.outputs[0], draft) if node.kind == "Mul" else None
    if found is None:
        return None
    sigmoid = next(
        maker for name in node.inputs if (maker := draft.producers.get(name)) and maker.kind == "HardSigmoid"
    )
    slope, middle = sigmoid.attributes.get("alpha", 0.2), sigmoid.attributes.get("beta", 0.5)
    same = math.isclose(slope, 1 / 6, rel_tol=1e-6) and middle == 0.5
    return Node("HardSwish", (found["x"],), node.outputs, {}, node.name) if same else None


def _gelu(draft: Draft, node: Node) -> Node | None:
    found = match(GELU, node.outputs[0], draft) if node.kind == "Mul" else None
    return None if found is None else _fused_node("Gelu", node, found["x"])


def _layer_norm(draft: Draft, node: Node) -> Node | None:
    found = match(LAYER_NORM, node.outputs[0], draft) if node.kind == "Add" else None
    if found is None:
        return None
    epsilon, size = draft.scalar(found["epsilon"]), draft.shape(found["x"])[-1:]
    if epsilon is None or any(draft.known[found[part]].shape != size for part in ("scale", "bias")):
        return None
    inputs = (found["x"], found["scale"], found["bias"])
    return Node("LayerNorm", inputs, node.outputs, {"epsilon": epsilon}, node.name, "fused")


def _linear(draft: Draft, node: Node) -> Node | None:
    found = match(LINEAR, node.outputs[0], draft) if node.kind == "Add" else None
    if found is None:
        return None
    weight, bias = draft.known[found["weight"]], draft.known[found["bias"]]
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or len(draft.shape(found["x"])) < 2:
        return None
    transposed = draft.add_constant(weight.t().contiguous(), found["weight"])
    return _fused_node("Linear", node, found["x"], transposed, found["bias"])


def _pad_conv(draft: Draft, node: Node) -> Node | None:
    """Merge zero padding before a convolution into the convolution's own padding."""
    pad = draft.producers.get(node.inputs[0]) if node.kind == "Conv" else None
    if pad is None or pad.kind != "Pad" or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    sides = _zero_margins(pad, draft)
    rank = len(draft.shape(node.inputs[0]))
    if (
        sides is None
        or len(sides) != 2 * rank
        or min(sides) < 0
        or any(sides[i] for i in (0, 1, rank, rank + 1))
    ):
        return None
    own = node.attributes.get("pads") or (0,) * (2 * rank - 4)
    pads = tuple(a + b for a, b in zip(own, (*sides[2:rank], *sides[rank + 2 :]), strict=True))
    return Node(
        "Conv", (pad.inputs[0], *node.inputs[1:]), node.outputs, {**node.attributes, "pads": pads}, node.name
    )


def _zero_margins(pad: Node, draft: Draft) -> tuple[int, ...] | None:
    if pad.attributes.get("mode", "constant") != "constant" or pad.attributes.get("value", 0.0) != 0:
        return None
    rest = [name for name in pad.inputs[2:] if name]
    if len(pad.inputs) > 3 or any(draft.scalar(name) != 0 for name in rest):
        return None
    if "pads" in pad.attributes:
        return tuple(pad.attributes["pads"])
    known = draft.known.get(pad.inputs[1])
    return None if known is None else tuple(known.tolist())


def _norm_conv(draft: Draft, node: Node) -> Node | None:
    """Fold a BatchNorm with constant statistics into the convolution before it."""
    conv = draft.producers.get(node.inputs[0]) if node.kind == "BatchNormalization" else None
    if conv is None or conv.kind != "Conv" or draft.only_user(conv.outputs[0]) is not node:
        return None
    if not all(name in draft.known for name in (*filter(None, conv.inputs[1:]), *node.inputs[1:])):
        return None
    scale, shift, mean, var = (draft.known[name].double() for name in node.inputs[1:5])
    factor = scale / torch.sqrt(var + node.attributes.get("epsilon", 1e-5))
    weight = draft.known[conv.inputs[1]]
    if factor.shape != weight.shape[:1]:
        return None
    bias = draft.known[conv.inputs[2]].double() if len(conv.inputs) > 2 and conv.inputs[2] else torch.zeros(1)
    folded = weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))
    inputs = (
        conv.inputs[0],
        draft.add_constant(folded.to(weight.dtype), conv.inputs[1]),
        draft.add_constant((shift + (bias - mean) * factor).to(weight.dtype), node.inputs[2]),
    )
    return Node("Conv", inputs, node.outputs, conv.attributes, conv.name)


def _clamp(draft: Draft, node: Node) -> Node | None:
    """A clamp in place, where no other node needs its input."""
    ceiling = clamp_ceiling(node, draft)
    maker = draft.producers.get(node.inputs[0]) if ceiling is not None else None
    if maker is None or not _is_overwritable(maker) or draft.only_user(node.inputs[0]) is not node:
        return None
    return Node("Clamp", node.inputs[:1], node.outputs, {"ceiling": ceiling}, node.name, "fused")


def _is_overwritable(maker: Node) -> bool:
    if maker.kind == "fused.Trunk":
        *_, last = (conv for stage in maker.attributes["module"] for conv in stage)
        return last.ceiling is None  # a clamped result is saved for the gradient
    return maker.kind in _OVERWRITABLE


def _fused_node(operator: str, node: Node, *inputs: str) -> Node:
    return Node(operator, inputs, node.outputs, {}, node.name, "fused")
