"""ONNX files whose weights are in other files: one file is made of both, without either in memory.

`torch.onnx.export` writes `m.onnx` with the graph and `m.onnx.data` with the weights, by default. Each weight
names its file, an offset and a length there: the numbers are checked as hostile input, the names are looked
up among the files that were given, and nothing else is opened. Format: onnx.proto, `TensorProto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

from touchstone.errors import InvalidModel, ModelTooLarge
from touchstone.models.protobuf import LENGTH, VARINT, Data, Field, Scanner, encode_header

MAX_BYTES = 2**31 - 1
"""The most bytes of one protocol buffer."""

CHUNK = 2**20
REMEDY = (
    "send it too: as the part data beside file, or both files in one zip; `touchstone register` does so by "
    "itself. Or export one file, with torch.onnx.export(…, external_data=False)"
)

# The messages that lead to a tensor: ModelProto, GraphProto, NodeProto, AttributeProto.
_TENSOR = "tensor"
_CHILDREN: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph"},
        "graph": {1: "node", 5: _TENSOR},
        "node": {5: "attribute"},
        "attribute": {5: _TENSOR},
    }
)
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_EXTERNAL = 1
_INLINE_FIELDS = frozenset({4, 5, 6, 7, _RAW_DATA, 10, 11})
_ITEM_SIZES: Mapping[int, int] = MappingProxyType(
    {2: 1, 3: 1, 9: 1, 4: 2, 5: 2, 10: 2, 16: 2, 1: 4, 6: 4, 12: 4, 7: 8, 11: 8, 13: 8}
)
"""Bytes of a number, by the type's number in TensorProto.DataType."""

_MAX_DIGITS = 18
_MAX_DIMENSIONS = 12
_MAX_TENSOR_FIELDS = 64


class Piece(NamedTuple):
    """Consecutive bytes of a source."""

    source: Data
    start: int
    end: int


@dataclass(frozen=True)
class Joined:
    """A file as the pieces that it consists of."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Its number of bytes."""
        return sum(piece.end - piece.start for piece in self.pieces)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a megabyte at a time at most."""
        for source, start, end in self.pieces:
            for at in range(start, end, CHUNK):
                yield source[at : min(at + CHUNK, end)]


def find_locations(data: Data) -> tuple[str, ...]:
    """The names of the other files that an ONNX file needs, as they are written. Raises InvalidModel."""
    with _report_damage():
        return tuple(dict.fromkeys(tensor.location for tensor in _Joiner(data, {}).tensors("model")))


def join(data: Data, files: Mapping[str, Data], *, limit: int = MAX_BYTES) -> Joined:
    """An ONNX file with all of its weights inside; `files` are the other ones, by name.

    Raises InvalidModel where a weight is in a file that was not given, or is not wholly in it, or where no
    weight is in one that was given; and ModelTooLarge where it would have more than `limit` bytes.
    """
    locations = find_locations(data)
    if missing := [name for name in locations if name not in files]:
        raise _missing(missing, files)
    if unused := sorted(files.keys() - set(locations)):
        raise _invalid(f"no weight of the network is in {_shorten(unused[0])}; send the file alone")
    with _report_damage():
        joined = Joined(tuple(_Joiner(data, files).rewrite("model")))
    if joined.size > (allowed := min(limit, MAX_BYTES)):
        raise ModelTooLarge(
            f"the file with its weights has {joined.size:,} bytes; at most {allowed:,} are allowed",
            field="data",
        )
    return joined


def _missing(names: Sequence[str], files: Iterable[str]) -> InvalidModel:
    given = ", ".join(map(_shorten, files))
    beside = f", and what was sent is named {given}" if given else ""
    named = ", ".join(map(_shorten, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return _invalid(f"the network's weights are in another file, {named}{beside}: {REMEDY}")


def _invalid(what: str) -> InvalidModel:
    return InvalidModel(f"data: {what}", field="data")


def _shorten(name: str) -> str:
    return repr(name[:80])


@contextmanager
def _report_damage() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidModel(
            f"the file is not an ONNX model, or it is damaged: {error}", field="file"
        ) from None


@dataclass(frozen=True)
class _Tensor:
    """Where the numbers of a tensor are, checked against its type and shape."""

    name: str
    location: str
    offset: int
    length: int


class _Joiner:
    """One pass over a file. Raises ValueError where it is damaged."""

    def __init__(self, data: Data, files: Mapping[str, Data]) -> None:
        self._scanner = Scanner(data)
        self._files = files

    def tensors(self, kind: str, message: Field | None = None) -> Iterator[_Tensor]:
        """The tensors in a message that are in other files."""
        if kind == _TENSOR:
            if message and (found := self._read_tensor(self._tensor_fields(message))):
                yield found
            return
        for field, child in self._children(kind, message):
            yield from self.tensors(child, field)

    def rewrite(self, kind: str, message: Field | None = None) -> Iterator[Piece]:
        """The message with its weights inside: its own bytes wherever these say nothing of other files."""
        at, end = (message.content, message.end) if message else (0, len(self._scanner.data))
        for field, child in self._children(kind, message):
            new = self._write_tensor(field) if child == _TENSOR else list(self.rewrite(child, field))
            if new == [Piece(self._scanner.data, field.content, field.end)]:
                continue
            header = encode_header(field.number, Joined(tuple(new)).size)
            yield Piece(self._scanner.data, at, field.start)
            yield Piece(header, 0, len(header))
            yield from new
            at = field.end
        yield Piece(self._scanner.data, at, end)

    def _children(self, kind: str, message: Field | None) -> Iterator[tuple[Field, str]]:
        for field in self._scanner.fields(message):
            if field.wire == LENGTH and field.number in _CHILDREN[kind]:
                yield field, _CHILDREN[kind][field.number]

    def _write_tensor(self, message: Field) -> list[Piece]:
        """A tensor, whose numbers become its raw data if they are in another file."""
        fields = self._tensor_fields(message)
        tensor, data = self._read_tensor(fields), self._scanner.data
        if tensor is None:
            return [Piece(data, message.content, message.end)]
        kept = [one for one in fields if one.number not in (_EXTERNAL_DATA, _DATA_LOCATION)]
        header = encode_header(_RAW_DATA, tensor.length)
        return [
            *(Piece(data, one.start, one.end) for one in kept),
            Piece(header, 0, len(header)),
            self._locate(tensor),
        ]

    def _tensor_fields(self, message: Field) -> Sequence[Field]:
        """The fields of a tensor; those with its numbers may be many, and only the first is among them."""
        found, inline = list[Field](), False
        for field in self._scanner.fields(message):
            if not (inline and field.number in _INLINE_FIELDS):
                found.append(field)
            inline = inline or field.number in _INLINE_FIELDS
            if len(found) > _MAX_TENSOR_FIELDS:
                raise ValueError("a weight in it has too many fields")
        return found

    def _locate(self, tensor: _Tensor) -> Piece:
        """The numbers of a tensor in the file that it names."""
        source, end = self._files[tensor.location], tensor.offset + tensor.length
        if end > len(source):
            raise _invalid(
                f"the weight {tensor.name!r} lies at bytes {tensor.offset:,} to {end:,} of "
                f"{_shorten(tensor.location)}, which has {len(source):,}: it is cut short, or another file"
            )
        return Piece(source, tensor.offset, end)

    def _read_tensor(self, fields: Sequence[Field]) -> _Tensor | None:
        """Where the numbers of a tensor are, None if they are in the tensor itself."""
        if _EXTERNAL not in self._numbers(fields, _DATA_LOCATION):
            return None
        names = [self._scanner.text(one)[:80] for one in fields if one.number == _NAME]
        name = names[-1] if names else ""
        if any(one.number in _INLINE_FIELDS for one in fields):
            raise _invalid(f"the weight {name!r} is in this file and in another")
        entries = dict(self._read_entry(one) for one in fields if one.number == _EXTERNAL_DATA)
        size = self._byte_size(fields, name)
        offset, length = (
            self._parse_size(entries.get(key), name, key, default)
            for key, default in (("offset", 0), ("length", size))
        )
        if size not in (None, length):
            raise _invalid(f"the weight {name!r} has {length:,} bytes; its type and shape need {size:,}")
        return _Tensor(name, _check_location(entries.get("location", ""), name), offset, length)

    def _numbers(self, fields: Sequence[Field], number: int) -> list[int]:
        found = [one for one in fields if one.number == number and one.wire in (VARINT, LENGTH)]
        return [value for one in found for value in self._scanner.integers(one)]

    def _read_entry(self, entry: Field) -> tuple[str, str]:
        """A key with its value."""
        texts = {one.number: self._scanner.text(one) for one in self._scanner.fields(entry)}
        return texts.get(1, ""), texts.get(2, "")

    def _byte_size(self, fields: Sequence[Field], name: str) -> int | None:
        """The bytes that the shape needs; None where a number's type is none of those with a known size."""
        shape = self._numbers(fields, _DIMS)
        if len(shape) > _MAX_DIMENSIONS or any(side < 0 for side in shape):
            raise _invalid(f"the weight {name!r} has the impossible shape {tuple(shape[:12])}")
        types = self._numbers(fields, _DATA_TYPE)
        size = _ITEM_SIZES.get(types[-1]) if types else None
        return None if size is None else math.prod(shape) * size

    def _parse_size(self, text: str | None, name: str, key: str, default: int | None) -> int:
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
            given = "nothing" if text is None else _shorten(text)
            raise _invalid(f"the weight {name!r} states {given} as its {key}; it must be a number of bytes")
        return int(text)


def _check_location(location: str, name: str) -> str:
    """The name of a file beside the graph, or in a folder there."""
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or not location.isprintable():
        raise _invalid(
            f"the weight {name!r} is in {_shorten(location)}; it must be a file beside the .onnx file"
        )
    return str(path)
