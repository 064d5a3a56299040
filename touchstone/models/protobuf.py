"""Fields of protocol buffers, found without parsing what is in them: a file is told from others, and cut up,
at the cost of its structure and not of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

Data = bytes | mmap
"""A file's bytes, in memory or memory-mapped."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MAX_FIELDS = 1_000_000
"""Fields that are read of one file, since a small field takes as long as a large one."""

MAX_TEXT = 4096

_WIDTHS = {FIXED64: 8, FIXED32: 4}

# Fields of ModelProto by number, with their wire type.
_MODEL = {1: VARINT, 2: LENGTH, 3: LENGTH, 4: LENGTH, 5: VARINT, 6: LENGTH, 7: LENGTH, 8: LENGTH}
_MODEL |= {14: LENGTH, 20: LENGTH, 25: LENGTH, 26: LENGTH}
_GRAPH = 7
_MAX_OUTERMOST = 100_000


class Field(NamedTuple):
    """A field of a message: where its tag starts, and where its content starts and ends."""

    number: int
    wire: int
    start: int
    content: int
    end: int


class Scanner:
    """The fields of a file and of the messages in it, up to `limit` in all. Everything raises ValueError."""

    def __init__(self, data: Data, limit: int = MAX_FIELDS) -> None:
        self.data = data
        self._left = limit

    def fields(self, message: Field | None = None) -> Iterator[Field]:
        """The fields of a message; without one, of the whole file."""
        at, end = (message.content, message.end) if message else (0, len(self.data))
        while at != end:
            self._count()
            field = self._read_field(at)
            if field.end > end:
                raise ValueError("a field goes beyond the end of its message")
            yield field
            at = field.end

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has too many fields")

    def _read_field(self, start: int) -> Field:
        tag, content = _read_varint(self.data, start)
        number, wire = tag >> 3, tag & 7
        if wire in _WIDTHS:
            return Field(number, wire, start, content, content + _WIDTHS[wire])
        value, after = _read_varint(self.data, content)
        if wire == VARINT:
            return Field(number, wire, start, content, after)
        if wire == LENGTH:
            return Field(number, wire, start, after, after + value)
        raise ValueError("no such wire type")

    def text(self, field: Field) -> str:
        """The content of a field as text, up to `MAX_TEXT` bytes; what is no UTF-8 is replaced."""
        end = min(field.end, field.content + MAX_TEXT)
        return self.data[field.content : end].decode("utf-8", errors="replace")

    def integers(self, field: Field) -> Iterator[int]:
        """The signed integers of a field, which may be one or packed."""
        at = field.content
        while at < field.end:
            value, at = _read_varint(self.data, at)
            self._count()
            yield value - 2**64 if value >= 2**63 else value


def encode_header(number: int, size: int) -> bytes:
    """The tag and the length before a content of so many bytes."""
    return _encode_varint(number << 3 | LENGTH) + _encode_varint(size)


def is_onnx(data: Data) -> bool:
    """Whether all of it parses as the fields of an ONNX model, one of them its graph."""
    fields = _read_fields(data)
    known = all(_MODEL.get(number) == wire for number, wire in fields)
    return known and (_GRAPH, LENGTH) in fields


def is_saved_model(data: Data) -> bool:
    """Whether it parses as TensorFlow's SavedModel: a version, then graphs."""
    fields = _read_fields(data)
    return fields[:1] == [(1, VARINT)] and set(fields[1:]) == {(2, LENGTH)}


def is_graph_def(data: Data) -> bool:
    """Whether it parses as TensorFlow's GraphDef: nodes, library and versions."""
    fields = _read_fields(data)
    allowed = {(1, LENGTH), (2, LENGTH), (3, VARINT), (4, LENGTH)}
    return (1, LENGTH) in fields[:1] and set(fields) <= allowed


def _read_fields(data: Data) -> list[tuple[int, int]]:
    """Number and wire type of each field; empty where the bytes are no protocol buffer."""
    try:
        return [(one.number, one.wire) for one in Scanner(data, _MAX_OUTERMOST).fields()]
    except ValueError:
        return []


def _read_varint(data: Data, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("no number")


def _encode_varint(value: int) -> bytes:
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
