"""Reductions over some dimensions, positions of extremes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from touchstone.models.onnx.operators.arithmetic import raise_to
from touchstone.models.onnx.registry import Known, operator

Reducer = Callable[[Tensor, tuple[int, ...], bool], Tensor]
Axes = Sequence[int] | None


def _register_reduction(name: str, function: Reducer, since: int) -> None:
    """Register a reduction in both its forms: axes as an attribute, and from a version on as an input."""

    @operator(name)
    def attribute(x: Tensor, *, axes: tuple[int, ...] | None = None, keepdims: int = 1) -> Tensor:
        return _reduce(function, x, axes, bool(keepdims))

    @operator(name, since)
    def argument(
        x: Tensor, axes: Known | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        some = None if axes is None or not axes.size else axes.tolist()
        if some is None and noop_with_empty_axes:
            return function(x.unsqueeze(-1), (-1,), False)
        return _reduce(function, x, some, bool(keepdims))


def _reduce(function: Reducer, x: Tensor, axes: Axes, keep: bool) -> Tensor:
    dims = tuple(axes) if axes else tuple(range(x.ndim))
    return function(x, dims, keep) if dims else function(x.unsqueeze(0), (0,), False)


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


def _l2(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """Its gradient at 0 is 0, as that of PyTorch's norms."""
    if not x.is_floating_point():
        return _sum(x.square(), dims, keep).sqrt()
    y: Tensor = torch.linalg.vector_norm(x, 2, dims, keep)
    return y


def _prod(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


for _name, _function, _since in (
    ("ReduceSum", _sum, 13),
    ("ReduceMean", torch.mean, 18),
    ("ReduceMax", torch.amax, 18),
    ("ReduceMin", torch.amin, 18),
    ("ReduceProd", _prod, 18),
    ("ReduceL1", lambda x, dims, keep: _sum(x.abs(), dims, keep), 18),
    ("ReduceL2", _l2, 18),
    ("ReduceSumSquare", lambda x, dims, keep: _sum(raise_to(x, 2), dims, keep), 18),
    ("ReduceLogSum", lambda x, dims, keep: _sum(x, dims, keep).log(), 18),
    ("ReduceLogSumExp", torch.logsumexp, 18),
):
    _register_reduction(_name, _function, _since)


def _register_position(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name)
    def position(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return function(x, axis, bool(keepdims))
        return x.shape[axis] - 1 - function(x.flip(axis), axis, bool(keepdims))


_register_position("ArgMax", torch.argmax)
_register_position("ArgMin", torch.argmin)


@operator("TopK", since=10)
def top_k(x: Tensor, k: Known, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    # A stable sort: of equal elements ONNX wants the first, which torch.topk does not promise.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k.item())
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("CumSum", since=11)
def cumulative_sum(x: Tensor, axis: Known, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis.item())
    x = x.flip(dim) if reverse else x
    sums = x.cumsum(dim, dtype=x.dtype)
    sums = sums - x if exclusive else sums
    return sums.flip(dim) if reverse else sums
