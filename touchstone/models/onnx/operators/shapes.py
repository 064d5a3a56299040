"""Reshaping, concatenation, slicing and padding."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.registry import Known, operator

Axes = tuple[int, ...]


@operator("Reshape", since=5)
def reshape(x: Tensor, shape: Known, *, allowzero: int = 0) -> Tensor:
    sizes = [int(side) for side in shape]
    if not allowzero:
        sizes = [x.shape[i] if side == 0 else side for i, side in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    cut = axis if axis >= 0 else axis + x.ndim
    return x.reshape(x.shape[:cut].numel(), x.shape[cut:].numel())


@operator("Transpose")
def transpose(x: Tensor, *, perm: Axes | None = None) -> Tensor:
    return x.permute(perm or tuple(reversed(range(x.ndim))))


@operator("Squeeze", since=1)
def squeeze_axes(x: Tensor, *, axes: Axes | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} of {tuple(x.shape)} are not all of size 1")
    return x.squeeze(axes)


@operator("Squeeze", since=13)
def squeeze(x: Tensor, axes: Known | None = None) -> Tensor:
    return squeeze_axes(x, axes=None if axes is None else tuple(axes.tolist()))


@operator("Unsqueeze", since=1)
def unsqueeze_axes(x: Tensor, *, axes: Axes) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze", since=13)
def unsqueeze(x: Tensor, axes: Known) -> Tensor:
    return unsqueeze_axes(x, axes=tuple(axes.reshape(-1).tolist()))


@operator("Expand", since=8)
def expand(x: Tensor, shape: Known) -> Tensor:
    sizes: torch.Size = torch.broadcast_shapes(x.shape, shape.tolist())  # type: ignore[no-untyped-call]
    return x.expand(sizes)


@operator("Tile", since=6)
def tile(x: Tensor, repeats: Known) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Concat", since=4)
def concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


@operator("Split")
def split_sizes(
    x: Tensor, *, axis: int = 0, split: Axes | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    if split is None:
        most = -(-x.shape[axis] // outputs)
        ends = [min(end, x.shape[axis]) for end in accumulate([most] * outputs)]
        split = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    return torch.split(x, list(split), axis)


@operator("Split", since=13)
def split(
    x: Tensor, sizes: Known | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    some = None if sizes is None else tuple(sizes.tolist())
    return split_sizes(x, axis=axis, split=some, outputs=num_outputs or outputs)


@operator("Slice", since=1)
def slice_axes(x: Tensor, *, starts: Axes, ends: Axes, axes: Axes | None = None) -> Tensor:
    return _cut(x, starts, ends, axes or tuple(range(len(starts))), (1,) * len(starts))


@operator("Slice", since=10)
def slice_between(
    x: Tensor, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None
) -> Tensor:
    dims = tuple(range(starts.size)) if axes is None else tuple(axes.tolist())
    strides = (1,) * starts.size if steps is None else tuple(steps.tolist())
    return _cut(x, tuple(starts.tolist()), tuple(ends.tolist()), dims, strides)


def _cut(x: Tensor, starts: Axes, ends: Axes, axes: Axes, steps: Axes) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise ValueError("a step of 0")
        taken = range(x.shape[axis])[start:end:step]
        if step > 0:
            index = [slice(None)] * (axis % x.ndim) + [slice(taken.start, max(taken.stop, taken.start), step)]
            x = x[tuple(index)]
        else:
            lowest = taken[-1] if taken else 0
            window = x.narrow(axis, lowest, taken[0] - lowest + 1 if taken else 0).flip(axis)
            x = window[(slice(None),) * (axis % x.ndim) + (slice(None, None, -step),)]
    return x


@operator("Pad", since=2)
def pad_sizes(x: Tensor, *, pads: Axes, mode: str = "constant", value: float = 0.0) -> Tensor:
    rank = x.ndim
    if len(pads) != 2 * rank:
        raise ValueError(f"pads needs {2 * rank} numbers, it has {len(pads)}")
    if mode == "constant":
        margins = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
        return functional.pad(x, margins, value=value)
    for axis in range(rank):
        x = _pad_axis(x, axis, pads[axis], pads[axis + rank], mode)
    return x


@operator("Pad", since=11)
def pad(
    x: Tensor, pads: Known, value: Known | None = None, axes: Known | None = None, *, mode: str = "constant"
) -> Tensor:
    sides = [int(side) for side in pads]
    if axes is not None:
        chosen, whole = [int(axis) % x.ndim for axis in axes], [0] * (2 * x.ndim)
        for i, axis in enumerate(chosen):
            whole[axis], whole[axis + x.ndim] = sides[i], sides[i + len(chosen)]
        sides = whole
    fill = 0.0 if value is None or not value.size else value.item()
    return pad_sizes(x, pads=tuple(sides), mode=mode, value=fill)


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Pad one dimension with copies of its own elements, or crop it where a side is negative."""
    if before == after == 0:
        return x
    size = x.shape[axis]
    if size == 0 or max(before, after) > 4096:
        raise ValueError(f"cannot pad a side of {size} by {max(before, after)}")
    places = torch.arange(-before, size + after, device="cpu")
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "reflect":
        period = max(2 * (size - 1), 1)
        places = places.remainder(period)
        places = torch.minimum(places, period - places) if size > 1 else places * 0
    elif mode == "wrap":
        places = places.remainder(size)
    else:
        raise ValueError(f"the mode {mode!r} is not known")
    return x.index_select(axis, places.to(x.device))


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@operator("Trilu", since=14)
def trilu(x: Tensor, k: Known | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
