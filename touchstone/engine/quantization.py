"""The 8-bit lattice: an image file holds multiples of 1/255, and what is downloaded must be what was
tested.
"""

from __future__ import annotations

import torch
from torch import Tensor

from touchstone.engine.norms import Norm
from touchstone.engine.pieces import cut
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
    return bool(((levels - levels.round()).abs() < 1e-3).all())


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
    d = (x - x0).double().mul_(LEVELS)
    inside = x0.double().mul_(LEVELS)

    def round_steps(scale: Tensor) -> Tensor:
        steps = (d * column(scale, d)).round_()
        moved = inside + steps
        outside = (moved < -SLACK) | (moved > LEVELS + SLACK)
        return steps.sub_(torch.sign(steps, out=moved).mul_(outside))

    def fits(scale: Tensor) -> Tensor:
        return is_within(norm.size(round_steps(scale).div_(LEVELS)), eps)

    low, high = torch.zeros_like(eps, dtype=torch.float64), torch.ones_like(eps, dtype=torch.float64)
    if not (reads_at_once(eps) and bool(fits(high).all())):
        for _ in range(halvings):
            middle = (low + high) / 2
            good = fits(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        low = torch.where(fits(torch.ones_like(low)), 1.0, low)
    else:
        low = high
    levels = round_steps(low).add_(inside)
    whole = levels.round()
    exact = (levels - whole).abs() < 1e-4
    return torch.where(exact, (whole.float() / LEVELS), (levels / LEVELS).float()).clamp_(0, 1).to(x.dtype)
