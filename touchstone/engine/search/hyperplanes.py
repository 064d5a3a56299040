"""The linearized boundaries between the label and other classes, of which an attack follows the nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from touchstone.engine.goals import class_leads
from touchstone.engine.pieces import cut
from touchstone.engine.queries import Jacobian, PlanOf
from touchstone.engine.rows import Rows, column

TINY = 1e-30
COPIES = 2
"""Gradients of a class that are held at a time: as they were computed, and in one tensor."""


@dataclass(frozen=True)
class Hyperplanes(Rows):
    """Per row, where the leads of k classes over the label would be zero if they were linear."""

    logits: Tensor  # (B, K) of the points
    gaps: Tensor  # (B, k) the leads
    slopes: Tensor  # (B, k) the dual norms of their gradients
    nearest: Tensor  # (B,) which of the k is the nearest
    normal: Tensor  # (B, C, H, W) the gradient of its lead

    @property
    def distances(self) -> Tensor:
        """How far the boundaries are, (B, k)."""
        return self.gaps.abs() / self.slopes.clamp_min(TINY)

    @property
    def nearest_gap(self) -> Tensor:
        """The lead of the nearest, (B,)."""
        return self.gaps.gather(1, self.nearest[:, None])[:, 0]

    def join(self, more: Hyperplanes) -> Hyperplanes:
        """With those of more classes at the same points; of equals the earlier is the nearest."""
        count = self.gaps.shape[1]
        ours, theirs = (one.distances.amin(1) for one in (self, more))
        nearer = theirs < ours
        return replace(
            self,
            gaps=torch.cat([self.gaps, more.gaps], 1),
            slopes=torch.cat([self.slopes, more.slopes], 1),
            nearest=torch.where(nearer, more.nearest + count, self.nearest),
            normal=torch.where(column(nearer, self.normal), more.normal, self.normal),
        )


def query_hyperplanes(x: Tensor, classes: Tensor, label: Tensor, dual: float) -> PlanOf[Hyperplanes]:
    """The boundaries of these classes (B, k) at the points `x`; `dual` is the order of the dual norm.

    Gradients are held a piece at a time, and each piece of the classes takes a forward pass of its own.
    """
    found: Hyperplanes | None = None
    for piece in cut(classes.shape[1], COPIES * x.numel()):
        part = yield from _query_part(x, classes[:, piece], label, dual)
        found = part if found is None else found.join(part)
    if found is None:
        raise ValueError("there are no classes to ask about")
    return found


def _query_part(x: Tensor, classes: Tensor, label: Tensor, dual: float) -> PlanOf[Hyperplanes]:
    answer = yield Jacobian(x, classes, label)
    gaps, normals = class_leads(answer.logits, classes, label), answer.gradient
    slopes = torch.linalg.vector_norm(normals.flatten(2), dual, 2)
    nearest = (gaps.abs() / slopes.clamp_min(TINY)).argmin(1)
    row = torch.arange(len(x), device=x.device)
    return Hyperplanes(answer.logits, gaps, slopes, nearest, normals[row, nearest])
