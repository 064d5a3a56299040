"""The outermost fields of a protocol buffer: enough to distinguish an ONNX model from other formats."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

# Fields of ModelProto by number, with their wire type.
_MODEL = {1: _VARINT, 2: _LENGTH, 3: _LENGTH, 4: _LENGTH, 5: _VARINT, 6: _LENGTH, 7: _LENGTH, 8: _LENGTH}
_MODEL |= {14: _LENGTH, 20: _LENGTH, 25: _LENGTH, 26: _LENGTH}
_GRAPH = 7
_MAX_FIELDS = 100_000


def is_onnx(data: bytes | mmap) -> bool:
    """Whether all of it parses as the fields of an ONNX model, one of them its graph."""
    fields = _read_fields(data)
    known = all(_MODEL.get(number) == wire for number, wire in fields)
    return known and (_GRAPH, _LENGTH) in fields


def is_saved_model(data: bytes | mmap) -> bool:
    """Whether it parses as TensorFlow's SavedModel: a version, then graphs."""
    fields = _read_fields(data)
    return fields[:1] == [(1, _VARINT)] and set(fields[1:]) == {(2, _LENGTH)}


def is_graph_def(data: bytes | mmap) -> bool:
    """Whether it parses as TensorFlow's GraphDef: nodes, library and versions."""
    fields = _read_fields(data)
    allowed = {(1, _LENGTH), (2, _LENGTH), (3, _VARINT), (4, _LENGTH)}
    return (1, _LENGTH) in fields[:1] and set(fields) <= allowed


def _read_fields(data: bytes | mmap) -> list[tuple[int, int]]:
    """Number and wire type of each field; empty where the bytes are no protocol buffer."""
    try:
        return list(_iterate_fields(data))
    except ValueError:
        return []


def _iterate_fields(data: bytes | mmap) -> Iterator[tuple[int, int]]:
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(data):
            return
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        at = _skip_value(data, at, wire)
        yield number, wire
    raise ValueError("too many fields")


def _skip_value(data: bytes | mmap, at: int, wire: int) -> int:
    """The end of the value that starts here."""
    if wire in _WIDTHS:
        return at + _WIDTHS[wire]
    value, at = _read_varint(data, at)
    if wire == _VARINT:
        return at
    if wire == _LENGTH:
        return at + value
    raise ValueError("no such wire type")


def _read_varint(data: bytes | mmap, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("no number")
