"""From the bytes of an ONNX file to a graph: its structure is checked, nothing is computed. Never imports
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from touchstone.errors import InvalidModel
from touchstone.models.onnx.graph import (
    Array,
    Graph,
    Node,
    Opaque,
    Port,
    Subgraph,
    select_needed,
    sort_nodes,
)
from touchstone.models.onnx.output_choice import choose_output
from touchstone.models.onnx.pixels import take_as_floats
from touchstone.models.onnx.tensors import DTYPES, dtype_of, read_tensor

OPSETS = range(1, 29)
"""The supported versions of ONNX's operator set."""

MAX_NODES = 20_000
MAX_SIDE = 4096
MAX_BATCH = 64

_OWN_DOMAINS = ("", "ai.onnx")
_PLAIN_FIELDS: Mapping[int, str] = MappingProxyType(
    {
        AttributeProto.FLOAT: "f",
        AttributeProto.INT: "i",
        AttributeProto.FLOATS: "floats",
        AttributeProto.INTS: "ints",
    }
)


def read(data: bytes, *, output: str | None = None, classes: int | None = None) -> Graph:
    """The classifier in an ONNX file: its output of this name, or the one that fits the number of classes.

    Runs nothing and opens no other file. Raises InvalidModel.
    """
    return _read_graph(_parse_model(data), output, classes)


def _parse_model(data: bytes) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise InvalidModel("the file is not an ONNX model, or it is cut short or damaged") from None
    if not model.HasField("graph"):
        raise InvalidModel("the file is not an ONNX model: it has no graph")
    return model


def _read_graph(model: ModelProto, name: str | None, classes: int | None) -> Graph:
    opset, proto = _read_opset(model), model.graph
    count = _count_nodes(proto.node)
    if count > MAX_NODES:
        raise InvalidModel(f"the network has {count} nodes; at most {MAX_NODES} are allowed")
    if proto.sparse_initializer:
        raise InvalidModel("the network has sparse weights, which are not supported; export them dense")
    weights = read_weights(proto)
    entry, output = _read_input(proto, weights), choose_output(_read_outputs(proto), name, classes)
    nodes = sort_nodes(tuple(map(read_node, proto.node)), {entry.name, *weights})
    nodes = select_needed(nodes, output.name)
    if not any(entry.name in node.inputs for node in nodes):
        raise InvalidModel(
            f"the output {output.name[:80]!r} does not depend on the input {entry.name[:80]!r}"
        )
    read = {name for node in nodes for name in node.inputs}
    weights = {name: weights[name] for name in weights if name in read}
    graph = Graph(entry, output, nodes, weights, opset, whole_pixels=entry.dtype == np.uint8)
    return take_as_floats(graph) if graph.whole_pixels else graph


def _count_nodes(nodes: Iterable[NodeProto]) -> int:
    """How many nodes there are, those in the bodies of others included."""
    return sum(1 + sum(_count_nodes(one.g.node) for one in node.attribute) for node in nodes)


def _read_opset(model: ModelProto) -> int:
    found = [entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAINS]
    if not found:
        raise InvalidModel("the file does not state the opset of its operators")
    if max(found) not in OPSETS:
        raise InvalidModel(
            f"the network is of opset {max(found)}; supported are {OPSETS[0]} to {OPSETS[-1]}; "
            "export it again"
        )
    return int(max(found))


def read_weights(proto: GraphProto) -> dict[str, Array]:
    """The file's tensors, by name."""
    weights: dict[str, Array] = {}
    for tensor in proto.initializer:
        if not tensor.name or tensor.name in weights:
            raise InvalidModel(
                f"two weights of the network are named {tensor.name[:80]!r}, or one has no name"
            )
        weights[decode_text(tensor.name)] = read_tensor(tensor, f"the weight {tensor.name[:80]!r}")
    return weights


def _read_input(proto: GraphProto, weights: Mapping[str, Array]) -> Port:
    # Before IR version 4 all weights were also listed as inputs.
    free = [value for value in proto.input if value.name not in weights]
    if len(free) != 1:
        names = ", ".join(value.name[:40] for value in free[:5])
        raise InvalidModel(f"the network must have one input, the image; it has {len(free)} ({names})")
    port = _read_port(free[0], "input")
    if len(port.shape) != 4:
        raise InvalidModel(
            f"the input must be images of shape (N, C, H, W); it has {len(port.shape)} dimensions"
        )
    if port.dtype.kind != "f" and port.dtype != np.uint8:
        raise InvalidModel(
            f"the input is of type {port.dtype}, which has no gradient; it must be float32, or uint8"
        )
    if (port.shape[0] or 1) > MAX_BATCH:
        raise InvalidModel(
            f"the network takes exactly {port.shape[0]} images at a time; at most {MAX_BATCH} are allowed: "
            "export it with batch 1 or any"
        )
    if any(side is not None and side > MAX_SIDE for side in port.shape):
        raise InvalidModel(f"the input of shape {port.shape} is larger than {MAX_SIDE} on a side")
    return port


def _read_outputs(proto: GraphProto) -> list[Port]:
    """The outputs; of several only the tensors, which can be logits."""
    if len(proto.output) == 1:
        return [_read_port(proto.output[0], "output")]
    tensors = [value for value in proto.output if value.type.tensor_type.elem_type in DTYPES]
    return [_read_port(value, "output") for value in tensors]


def _read_port(value: ValueInfoProto, role: str) -> Port:
    if not value.type.HasField("tensor_type"):
        raise InvalidModel(f"the {role} {value.name[:80]!r} must be a tensor")
    tensor = value.type.tensor_type
    dtype = dtype_of(tensor.elem_type, f"the {role} {value.name[:80]!r}")
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    return Port(decode_text(value.name), dtype, shape)


def read_node(proto: NodeProto) -> Node:
    """A node with its attributes as Python values."""
    if not any(proto.output):
        raise InvalidModel(f"the node {proto.name[:80]!r} has no output")
    domain = "" if proto.domain in _OWN_DOMAINS else decode_text(proto.domain)
    attributes = dict(
        _read_attribute(one, f"node {proto.name[:80]!r}")
        for one in proto.attribute
        if one.name != "consumed_inputs"  # a hint in the oldest files: which inputs may be overwritten
    )
    inputs, outputs = tuple(map(decode_text, proto.input)), tuple(map(decode_text, proto.output))
    bodies = [value for value in attributes.values() if isinstance(value, Subgraph)]
    captured = dict.fromkeys(name for body in bodies for name in body.captured)
    kind, name = decode_text(proto.op_type), decode_text(proto.name)
    return Node(kind, (*inputs, *captured), outputs, attributes, name, domain)


def _read_attribute(proto: AttributeProto, where: str) -> tuple[str, Any]:
    decode_text(proto.name)
    if proto.ref_attr_name:
        raise InvalidModel(
            f"{where}: the attribute {proto.name[:40]!r} refers to a function's, but is in none"
        )
    if proto.type in _PLAIN_FIELDS:
        value = getattr(proto, _PLAIN_FIELDS[proto.type])
        return proto.name, value if isinstance(value, int | float) else tuple(value)
    if proto.type == AttributeProto.STRING:
        return proto.name, decode_text(proto.s)
    if proto.type == AttributeProto.STRINGS:
        return proto.name, tuple(map(decode_text, proto.strings))
    if proto.type == AttributeProto.TENSOR:
        return proto.name, read_tensor(proto.t, f"{where}: the tensor {proto.name[:40]!r}")
    if proto.type == AttributeProto.GRAPH:
        return proto.name, _read_subgraph(proto.g)
    return proto.name, Opaque(_attribute_kind(proto.type))


def _read_subgraph(proto: GraphProto) -> Subgraph:
    """A body with its nodes in order; its weights become constants."""
    inputs, outputs = (
        tuple(decode_text(value.name) for value in part) for part in (proto.input, proto.output)
    )
    weights = read_weights(proto)
    constants = (Node("Constant", (), (name,), {"value": value}) for name, value in weights.items())
    body = Subgraph(inputs, outputs, (*constants, *map(read_node, proto.node)))
    return replace(body, nodes=sort_nodes(body.nodes, {*inputs, *body.captured}))


def decode_text(value: str | bytes) -> str:
    """A string of the file, which protobuf returns as bytes where it is not UTF-8. Raises InvalidModel."""
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidModel("the ONNX file is damaged: a name in it is not text") from None


def _attribute_kind(number: int) -> str:
    names = {value: name for name, value in AttributeProto.AttributeType.items()}
    return str(names.get(number, number))
