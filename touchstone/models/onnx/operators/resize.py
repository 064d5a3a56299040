"""Resize and Upsample: one dimension at a time, by a matrix of weights that depends on the sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.graph import Array
from touchstone.models.onnx.registry import Known, operator

MAX_SIDE = 8192


@dataclass(frozen=True)
class ResizeRule:
    """How positions of the result map to the original, and how values are interpolated."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class Scaling:
    """The change of one dimension; `roi` is the start and end of the cropped part, from 0 to 1."""

    before: int
    after: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def is_identity(self) -> bool:
        """Whether the dimension does not change."""
        return self.before == self.after and self.scale == 1.0 and self.roi == (0.0, 1.0)


@operator("Upsample", since=7)
def upsample_by(x: Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> Tensor:
    rule = ResizeRule(mode, "asymmetric", "floor")
    return _resize(x, [_scale_by(n, s) for n, s in zip(x.shape, scales, strict=True)], rule)


@operator("Upsample", since=9)
def upsample(x: Tensor, scales: Known, *, mode: str = "nearest") -> Tensor:
    return upsample_by(x, scales=tuple(scales.tolist()), mode=mode)


@operator("Resize", since=10)
def resize_by(x: Tensor, scales: Known, *, mode: str = "nearest") -> Tensor:
    return upsample_by(x, scales=tuple(scales.tolist()), mode=mode)


@operator("Resize", since=11)
def resize(
    x: Tensor,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    dims = tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in axes)
    before = [x.shape[dim] for dim in dims]
    if sizes is not None and sizes.size:
        changes = _scale_to(before, sizes.tolist(), keep_aspect_ratio_policy)
    elif scales is not None:
        changes = [_scale_by(n, s) for n, s in zip(before, scales.tolist(), strict=True)]
    else:
        raise ValueError("neither sizes nor scales are given")
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None:
        count = len(dims)
        changes = [
            Scaling(one.before, one.after, one.scale, (float(roi[i]), float(roi[i + count])))
            for i, one in enumerate(changes)
        ]
    whole = [Scaling(n, n, 1.0) for n in x.shape]
    for dim, change in zip(dims, changes, strict=True):
        whole[dim] = change
    rule = ResizeRule(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    return _resize(x, whole, rule)


def _scale_by(size: int, scale: float) -> Scaling:
    return Scaling(size, int(np.floor(size * scale)), scale)


def _scale_to(before: list[int], sizes: list[int], policy: str) -> list[Scaling]:
    scales = [after / size for size, after in zip(before, sizes, strict=True)]
    if policy == "stretch":
        return [Scaling(n, m, s) for n, m, s in zip(before, sizes, scales, strict=True)]
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [Scaling(n, int(np.floor(scale * n + 0.5)), scale) for n in before]


def _resize(x: Tensor, changes: list[Scaling], rule: ResizeRule) -> Tensor:
    if any(change.after > MAX_SIDE for change in changes):
        raise ValueError(f"a side of {max(change.after for change in changes)} is too large")
    if _matches_torch(x, changes, rule):
        size = [change.after for change in changes[2:]]
        corners = rule.coordinates == "align_corners"
        return functional.interpolate(x, size, mode="bilinear", align_corners=corners)
    moving = [(dim, change) for dim, change in enumerate(changes) if not change.is_identity]
    for dim, change in moving:
        if rule.mode == "nearest" and rule.coordinates != "tf_crop_and_resize":
            x = x.index_select(dim, torch.from_numpy(_nearest(change, rule)).to(x.device))
        else:
            matrix = torch.from_numpy(_matrix(change, rule)).to(x)
            x = torch.tensordot(x, matrix, ([dim], [1])).movedim(-1, dim)
    if rule.coordinates == "tf_crop_and_resize":
        for dim, change in moving:
            outside = torch.from_numpy(_outside(change)).to(x.device)
            column = outside.view(-1, *[1] * (x.ndim - 1 - dim))
            x = torch.where(column, rule.extrapolation, x)
    return x


def _matches_torch(x: Tensor, changes: list[Scaling], rule: ResizeRule) -> bool:
    """Whether PyTorch's own bilinear interpolation does the same."""
    whole = all(change.after == change.before * change.scale > 1 for change in changes[2:])
    plain = rule.mode == "linear" and not rule.antialias and not rule.exclude_outside
    known = rule.coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners")
    return x.ndim == 4 and plain and known and whole and all(one.is_identity for one in changes[:2])


def _positions(change: Scaling, rule: ResizeRule) -> Array:
    """The position of each element of the result in the original."""
    i = np.arange(change.after, dtype=np.float64)
    length, scale = change.scale * change.before, change.scale
    start, end = change.roi
    half = (i + 0.5) / scale - 0.5
    ways: dict[str, Callable[[], Array]] = {
        "half_pixel": lambda: half,
        "pytorch_half_pixel": lambda: half if length > 1 else np.zeros_like(i),
        "half_pixel_symmetric": lambda: change.before / 2 * (1 - change.after / length) + half,
        "align_corners": lambda: i * (change.before - 1) / (length - 1) if length != 1 else np.zeros_like(i),
        "asymmetric": lambda: i / scale,
        "tf_half_pixel_for_nn": lambda: (i + 0.5) / scale,
        "tf_crop_and_resize": lambda: (
            start * (change.before - 1) + i * (end - start) * (change.before - 1) / (length - 1)
            if length > 1
            else np.full_like(i, 0.5 * (start + end) * (change.before - 1))
        ),
    }
    if rule.coordinates not in ways:
        raise ValueError(f"the coordinate transformation {rule.coordinates!r} is not known")
    return ways[rule.coordinates]()


def _outside(change: Scaling) -> Array:
    positions = _positions(change, ResizeRule(coordinates="tf_crop_and_resize"))
    outside: Array = (positions < 0) | (positions > change.before - 1)
    return outside


@lru_cache(maxsize=256)
def _nearest(change: Scaling, rule: ResizeRule) -> Array:
    """The index of the original that each element of the result copies."""
    positions = _positions(change, rule)
    ways: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    indices: Array = ways[rule.nearest](positions).clip(0, change.before - 1).astype(np.int64)
    return indices


@lru_cache(maxsize=256)
def _matrix(change: Scaling, rule: ResizeRule) -> Array:
    """The weight of each element of the original (columns) in each of the result (rows)."""
    matrix = np.zeros((change.after, change.before))
    rows = np.arange(change.after)
    if rule.mode == "nearest":
        matrix[rows, _nearest(change, rule)] = 1.0
        return matrix
    kernel, reach = _kernel(rule)
    positions = _positions(change, rule)
    stretch = min(change.scale, 1.0) if rule.antialias else 1.0
    reach = int(np.ceil(reach / stretch))
    for offset in range(1 - reach, reach + 1):
        columns = np.floor(positions) + offset
        weight = kernel(np.abs(columns - positions) * stretch)
        inside = (columns >= 0) & (columns < change.before)
        weight = np.where(inside, weight, 0.0) if rule.exclude_outside else weight
        np.add.at(matrix, (rows, columns.clip(0, change.before - 1).astype(int)), weight)
    return matrix / matrix.sum(1, keepdims=True) if rule.antialias or rule.exclude_outside else matrix


def _kernel(rule: ResizeRule) -> tuple[Callable[[Array], Array], int]:
    """The weight at a distance, and the distance beyond which it is zero."""
    a = rule.cubic
    if rule.mode == "linear":
        return lambda t: np.maximum(1 - t, 0), 1
    if rule.mode != "cubic":
        raise ValueError(f"the mode {rule.mode!r} is not known")

    def cubic(t: Array) -> Array:
        near = ((a + 2) * t - (a + 3)) * t**2 + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0.0))

    return cubic, 2
