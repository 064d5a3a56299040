"""The header of a safetensors file, checked without loading a tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from mmap import mmap
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from touchstone.errors import InvalidModel
from touchstone.json_limits import JsonLimitError, JsonLimits

MAX_HEADER_BYTES = 2_000_000
"""The format allows fifty times as much, which the allowed number of tensors does not need."""

MAX_TENSORS = 10_000
_LIMITS = JsonLimits(containers=4 * MAX_TENSORS, values=20 * MAX_TENSORS)
LENGTH_BYTES = 8

_SIZES: Mapping[str, int] = MappingProxyType(
    {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}
    | {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
)

_Extent = Annotated[StrictInt, Field(ge=0, le=2**48)]


class _TensorEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: Annotated[list[_Extent], Field(max_length=16, fail_fast=True)]
    data_offsets: tuple[_Extent, _Extent]


_ENTRY = TypeAdapter(_TensorEntry)


def has_header_brace(data: bytes | mmap) -> bool:
    """Whether the first brace of a header is at its position."""
    return data[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def looks_like_safetensors(data: bytes | mmap) -> bool:
    """Whether a header of the announced length follows, or would follow if the file were complete."""
    return has_header_brace(data) and (_read_length(data) <= MAX_HEADER_BYTES or data[7] == 0)


def check_header(data: bytes | mmap) -> None:
    """Raise InvalidModel unless the header is valid and its tensors fill the rest without gap or overlap."""
    length, available = _read_length(data), len(data) - LENGTH_BYTES
    if length > min(available, MAX_HEADER_BYTES):
        raise _invalid_file(
            f"its header claims {length:,} bytes; the file has {available:,}, and at most "
            f"{MAX_HEADER_BYTES:,} are allowed"
        )
    header = _read_header(data[LENGTH_BYTES : LENGTH_BYTES + length])
    header.pop("__metadata__", None)
    if not 0 < len(header) <= MAX_TENSORS:
        raise _invalid_file(f"it holds {len(header):,} tensors; 1 to {MAX_TENSORS:,} are possible")
    _check_tensors({name: _read_entry(name, entry) for name, entry in header.items()}, available - length)


def _read_entry(name: str, entry: Any) -> _TensorEntry:
    """One entry, so that a file is refused at its first wrong one."""
    try:
        return _ENTRY.validate_python(entry)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part)[:60] for part in (name, *fault["loc"]))
        raise _invalid_file(f"its header is malformed at {where}: {fault['msg']}") from None


def _read_length(data: bytes | mmap) -> int:
    return int.from_bytes(data[:LENGTH_BYTES], "little")


def _read_header(text: bytes) -> dict[str, Any]:
    try:
        _LIMITS.check(text)
        header: dict[str, Any] = json.loads(text)  # since it begins with a brace
    except JsonLimitError as error:
        raise _invalid_file(f"its header holds too much: {error}") from None
    except ValueError:
        raise _invalid_file("its header is not JSON") from None
    return header


def _check_tensors(tensors: Mapping[str, _TensorEntry], size: int) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _SIZES:
            raise _invalid_file(
                f"the tensor {name[:80]!r} is of the type {tensor.dtype[:20]!r}, which is not known"
            )
        start, end = tensor.data_offsets
        if end - start != math.prod(tensor.shape) * _SIZES[tensor.dtype]:
            raise _invalid_file(f"the tensor {name[:80]!r} does not have the bytes that its shape needs")
    spans = sorted(tensor.data_offsets for tensor in tensors.values())
    if any(before[1] != after[0] for before, after in pairwise([(0, 0), *spans, (size, size)])):
        raise _invalid_file("its tensors overlap, leave gaps, or lie beyond the end of the file")


def _invalid_file(what: str) -> InvalidModel:
    return InvalidModel(f"the safetensors file is damaged: {what}", field="file")
