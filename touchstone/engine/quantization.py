"""The 8-bit lattice: an image file holds multiples of 1/255, and what is downloaded must be what was
tested.
"""

from __future__ import annotations

import torch
from torch import Tensor

from touchstone.engine.norms import Norm
from touchstone.engine.pieces import PART_VALUES, cut
from touchstone.engine.rows import column, reads_at_once

LEVELS = 255
SLACK = 1e-9
"""Relative slack in comparing a distance to eps in float64, so that 2 steps of 1/255 count as inside
"2/255".
"""


COPIES = 16
"""Tensors in the size of a row that rounding it takes: rows are rounded in pieces."""


def is_within(distance: Tensor, eps: Tensor) -> Tensor:
    """Which distances (B,), in float64, are at most the radius (B,), up to `SLACK`."""
    return distance <= eps.double() * (1 + SLACK)


def to_pixels(x: Tensor) -> Tensor:
    """Images in [0,1] as uint8, rounded to the nearest level."""
    return (x * LEVELS).round().to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 images in [0,1], float32: the one conversion that originals, candidates and decoded files go
    through.
    """
    return pixels.to(torch.float32) / LEVELS


def smallest_step(like: Tensor, norm: Norm) -> float:
    """The size of the smallest change that a file can hold: one level of one value of an image."""
    step = like.new_zeros((1, *like.shape[1:])).double()
    step.flatten()[0] = 1 / LEVELS
    return float(norm.size(step))


def on_lattice(x: Tensor) -> bool:
    """Whether every value is a multiple of 1/255, up to float32's own rounding."""
    levels = x * LEVELS
    return bool((levels.sub_(levels.round()).abs_() < 1e-3).all())


def snap(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm, *, halvings: int = 8) -> Tensor:
    """Round the perturbation x - x0 to whole steps of 1/255 without leaving the ball of radius `eps` or the
    box.

    Rounding to nearest may lengthen a perturbation, so it is shrunk first by the largest factor (found by
    bisection, per row) at which the rounded one fits. Where x0 is on the lattice the result is, too.
    Distances are taken in float64.
    """
    pieces = cut(len(x), COPIES * x[:1].numel())
    parts = [_snap_rows(x[rows], x0[rows], eps[rows], norm, halvings) for rows in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else x


def _snap_rows(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm, halvings: int) -> Tensor:
    steps = _Steps(x, x0)

    def fits(scale: Tensor) -> Tensor:
        return is_within(norm.size(steps.round(scale).div_(LEVELS)), eps)

    low, high = torch.zeros_like(eps, dtype=torch.float64), torch.ones_like(eps, dtype=torch.float64)
    if not (reads_at_once(eps) and bool(fits(high).all())):
        for _ in range(halvings):
            middle = (low + high) / 2
            good = fits(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        low = torch.where(fits(torch.ones_like(low)), 1.0, low)
    else:
        low = high
    return steps.apply(low).to(x.dtype)


class _Steps:
    """Perturbations in levels, float64, of points (B, C, H, W) from their originals.

    Those of large images are computed anew in each use, a part of the values at a time: kept, they would take
    four times the image's memory.
    """

    def __init__(self, x: Tensor, x0: Tensor) -> None:
        self._shape, self._x, self._x0 = x.shape, x.flatten(1), x0.flatten(1)
        width = max(1, PART_VALUES // max(1, len(x)))
        self._parts = [slice(at, at + width) for at in range(0, self._x.shape[1], width)]
        self._kept = self._compute(self._parts[0]) if len(self._parts) == 1 else None

    def round(self, scale: Tensor) -> Tensor:
        """The perturbations, times `scale` (B,), in whole levels within the box."""
        if self._kept is not None:
            return self._round_part(self._parts[0], scale)[0].view(self._shape)
        rounded = self._x.new_empty(self._x.shape, dtype=torch.float64)
        for part in self._parts:
            rounded[:, part] = self._round_part(part, scale)[0]
        return rounded.view(self._shape)

    def apply(self, scale: Tensor) -> Tensor:
        """The points at these perturbations, float32 in [0,1]."""
        points = [self._apply_part(part, scale) for part in self._parts]
        return (points[0] if len(points) == 1 else torch.cat(points, 1)).view(self._shape)

    def _compute(self, part: slice) -> tuple[Tensor, Tensor]:
        """The perturbations and the originals, in levels."""
        x, x0 = self._x[:, part], self._x0[:, part]
        return (x - x0).double().mul_(LEVELS), x0.double().mul_(LEVELS)

    def _round_part(self, part: slice, scale: Tensor) -> tuple[Tensor, Tensor]:
        d, inside = self._compute(part) if self._kept is None else self._kept
        steps = (d * column(scale, d)).round_()
        moved = inside + steps
        outside = (moved < -SLACK) | (moved > LEVELS + SLACK)
        return steps.sub_(torch.sign(steps, out=moved).mul_(outside)), inside

    def _apply_part(self, part: slice, scale: Tensor) -> Tensor:
        steps, inside = self._round_part(part, scale)
        levels = steps.add_(inside)
        whole = levels.round()
        exact = (levels - whole).abs_() < 1e-4
        rounded = whole.float().div_(LEVELS)
        return torch.where(exact, rounded, levels.div_(LEVELS).float()).clamp_(0, 1)
