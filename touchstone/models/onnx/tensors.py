"""Tensors of an ONNX file as numpy arrays, checked against their shapes; never from another file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto

from touchstone.errors import InvalidModel
from touchstone.models.onnx.graph import Array

DTYPES: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {
        TensorProto.FLOAT: np.dtype("float32"),
        TensorProto.UINT8: np.dtype("uint8"),
        TensorProto.INT8: np.dtype("int8"),
        TensorProto.UINT16: np.dtype("uint16"),
        TensorProto.INT16: np.dtype("int16"),
        TensorProto.INT32: np.dtype("int32"),
        TensorProto.INT64: np.dtype("int64"),
        TensorProto.BOOL: np.dtype("bool"),
        TensorProto.FLOAT16: np.dtype("float16"),
        TensorProto.DOUBLE: np.dtype("float64"),
        TensorProto.UINT32: np.dtype("uint32"),
        TensorProto.UINT64: np.dtype("uint64"),
    }
)
"""The supported types of numbers."""

MAX_DIMENSIONS = 12


def dtype_of(number: int, what: str) -> np.dtype[Any]:
    """The type with this number in ONNX. Raises InvalidModel."""
    if number not in DTYPES:
        names = {value: name for name, value in TensorProto.DataType.items()}
        raise InvalidModel(
            f"{what} is of type {names.get(number, number)}; supported are "
            + ", ".join(str(dtype) for dtype in DTYPES.values())
        )
    return DTYPES[number]


def read_tensor(proto: TensorProto, what: str) -> Array:
    """The numbers of a tensor, called `what` in errors. Raises InvalidModel."""
    if proto.data_location != TensorProto.DEFAULT or proto.external_data:
        raise InvalidModel(f"{what} is in another file; export the network with its weights inside")
    if proto.HasField("segment"):
        raise InvalidModel(f"{what} is a segment of a tensor, which is not supported")
    dtype, shape = dtype_of(proto.data_type, what), tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(side < 0 for side in shape):
        raise InvalidModel(f"{what} has the impossible shape {shape[: MAX_DIMENSIONS + 1]}")
    found = _read_numbers(proto, dtype, what)
    if found.size != math.prod(shape):
        raise InvalidModel(f"{what} has {found.size} numbers; its shape {shape} needs {math.prod(shape)}")
    return found.reshape(shape)


def _read_numbers(proto: TensorProto, dtype: np.dtype[Any], what: str) -> Array:
    if not proto.HasField("raw_data"):
        return _read_typed_field(proto, dtype, what)
    data = proto.raw_data
    if len(data) % dtype.itemsize:
        raise InvalidModel(f"{what} has {len(data)} bytes, no whole number of {dtype} values")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)  # a copy, in this machine's byte order


def _read_typed_field(proto: TensorProto, dtype: np.dtype[Any], what: str) -> Array:
    fields: dict[str, Any] = {"float32": proto.float_data, "float64": proto.double_data}
    fields |= {"int64": proto.int64_data, "uint32": proto.uint64_data, "uint64": proto.uint64_data}
    numbers = fields.get(dtype.name, proto.int32_data)
    try:
        if dtype == np.float16:  # its bits, as integers
            return np.fromiter(numbers, np.uint16).view(dtype)
        return np.fromiter(numbers, dtype)  # one by one, since `np.array` wraps numbers that do not fit
    except OverflowError as error:
        raise InvalidModel(f"{what} has a number that does not fit {dtype}: {error}") from None
