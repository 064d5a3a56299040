"""The record of attacks of minimal norm: the nearest point that met the goal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.goals import Margin
from touchstone.engine.queries import Found
from touchstone.engine.rows import Rows, column
from touchstone.engine.threat import Case


@dataclass(frozen=True)
class Nearest(Rows):
    """The nearest point of every row that met the goal so far; before there is one, the one that came closest
    to it.
    """

    x: Tensor  # (B, C, H, W)
    distance: Tensor  # (B,) infinite until the goal was met
    margin: Tensor  # (B,) how far the goal is exceeded at `x`, in logits

    @classmethod
    def initial(cls, x0: Tensor) -> Nearest:
        """Nothing found yet: every point is better."""
        far = x0.new_full((len(x0),), torch.inf)
        return cls(x0, far, -far)

    @classmethod
    def from_logits(cls, case: Case, x: Tensor, logits: Tensor) -> Nearest:
        """A record of these points with the model's logits."""
        met = case.goal.is_met(logits)
        distance = case.threat.distance(x).masked_fill(~met, torch.inf)
        return cls(x, distance, Margin(case.goal)(logits))

    @property
    def met(self) -> Tensor:
        """Which rows met the goal, (B,) bool."""
        return self.distance.isfinite()

    def put(self, rows: Tensor, found: Nearest) -> Nearest:
        """This record with the better points of `found` in the rows of index vector `rows`; of equals the
        earlier stays.
        """
        if len(rows) == len(self):
            return self.or_else(found)
        merged = self[rows].or_else(found)
        return Nearest(
            self.x.index_copy(0, rows, merged.x),
            self.distance.index_copy(0, rows, merged.distance),
            self.margin.index_copy(0, rows, merged.margin),
        )

    def or_else(self, other: Nearest) -> Nearest:
        """The better of two records, row by row."""
        closer = ~self.met & ~other.met & (other.margin > self.margin)
        better = (other.distance < self.distance) | closer
        return Nearest(
            torch.where(column(better, self.x), other.x, self.x),
            torch.where(better, other.distance, self.distance),
            torch.where(better, other.margin, self.margin),
        )

    def to_found(self, case: Case) -> Found:
        """As the result of a plan: within the case's radius, where it has one. A point that met the goal by
        less than the required margin counts, too.
        """
        met = (self.met | (self.margin > 0)) & (self.distance <= case.threat.eps)
        return Found(torch.where(column(met, self.x), self.x, case.threat.project(self.x)), met)
