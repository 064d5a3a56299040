"""Gather and scatter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.registry import Known, operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    places = _from_start(indices, x.shape[axis])
    picked = x.index_select(axis, places.reshape(-1))
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operator("GatherElements", since=11)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _from_start(indices, x.shape[axis]))


@operator("GatherND", since=11)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = indices.shape[-1]
    shared, indexed = x.shape[:batch_dims], x.shape[batch_dims : batch_dims + depth]
    rest = x.shape[batch_dims + depth :]
    flat = x.reshape(shared.numel(), indexed.numel(), rest.numel())
    places = _linear(indices, indexed).reshape(shared.numel(), -1)
    picked = flat.gather(1, places[:, :, None].expand(-1, -1, rest.numel()))
    return picked.reshape(indices.shape[:-1] + rest)


@operator("ScatterND", since=11)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    indexed, rest = x.shape[:depth], x.shape[depth:]
    places = _linear(indices, indexed).reshape(-1, 1).expand(-1, rest.numel())
    flat = x.reshape(indexed.numel(), rest.numel())
    return _scatter(flat, 0, places, updates.reshape(places.shape), reduction).reshape(x.shape)


@operator("ScatterElements", since=11)
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    return _scatter(x, axis, _from_start(indices, x.shape[axis]), updates, reduction)


@operator("OneHot", since=9)
def one_hot(indices: Tensor, depth: Known, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(depth.item())
    classes = torch.arange(count, device=indices.device)
    hot = _from_start(indices, count)[..., None] == classes
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return functional.grid_sample(x, grid, kind, padding_mode, bool(align_corners))


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices with negative ones counted from the end."""
    places = indices.long()
    return torch.where(places < 0, places + size, places)


def _linear(indices: Tensor, sizes: torch.Size) -> Tensor:
    """One number for each position in an array of these sizes; the last dimension holds coordinates."""
    places = indices.new_zeros(indices.shape[:-1], dtype=torch.int64)
    for dim, size in enumerate(sizes):
        places = places * size + _from_start(indices[..., dim], size)
    return places


def _scatter(x: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])
