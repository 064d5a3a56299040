"""Constants, ranges and casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from touchstone.models.onnx.registry import Known, Like, operator
from touchstone.models.onnx.tensors import dtype_of


def torch_dtype(number: int) -> torch.dtype:
    """PyTorch's type for a type number of ONNX."""
    return torch.from_numpy(np.zeros(0, dtype_of(number, "the result"))).dtype


@operator("Constant")
def constant(
    *,
    value: np.ndarray[Any, Any] | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
) -> Tensor:
    if value is not None:
        return torch.from_numpy(value)
    floats = value_float if value_float is not None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32, device="cpu")
    integers = value_int if value_int is not None else value_ints
    if integers is None:
        raise ValueError("the constant has no value of a supported type")
    return torch.tensor(integers, dtype=torch.int64, device="cpu")


@operator("ConstantOfShape", since=9)
def constant_of_shape(shape: Known, *, value: np.ndarray[Any, Any] | None = None) -> Tensor:
    fill = torch.zeros(1, device="cpu") if value is None else torch.from_numpy(value)
    return torch.full(shape.tolist(), fill.item(), dtype=fill.dtype)


@operator("Range", since=11)
def arange(start: Known, limit: Known, delta: Known, *, stash_type: int = 1) -> Tensor:
    dtype = torch.from_numpy(start.reshape(-1)).dtype
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


@operator("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    row, column = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
    return (column - row[:, None] == k).to(kind)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    return x


@operator("Cast", since=6)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(torch_dtype(to))


@operator("CastLike", since=15)
def cast_like(x: Tensor, like: Like, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device="cpu")


@operator("Size")
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device="cpu")
