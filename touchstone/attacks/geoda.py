"""GeoDA: the boundary's normal at one point, and from the original along it to the boundary, a few times."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.pieces import NEIGHBOR_BYTES
from touchstone.fields import Count, Queries, Ratio, Starts
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf

MAX_DOUBLINGS = 12
"""Doublings of the distance from the original before a direction is given up."""
EXPECTED_DOUBLINGS = 3
"""How many doublings a round is expected to take."""
MIN_NEIGHBORS = 50
"""Neighbors in the first round below which there is one round less."""
FIRST_STEP = 0.5
"""Size of the first step from the original along a normal, as part of the distance of the point before."""


class GeoDA(MinimalNorm):
    """Decisions alone, for boundaries that are nearly flat (algorithm 1): estimate the normal at a point of
    the boundary from random neighbors, then go from the original along it (along its signs in L∞) to where
    it crosses the boundary; repeat from there.

    Neighbors, and with them the normal, have low frequencies alone: a third along each side, the paper's 75
    of 224. That takes fewer queries where the model depends on shapes; where it depends on single pixels,
    `low` is to be 1. Each round takes `growth` times the queries of the one before, the paper's λ^(-2/3), and
    there are as many rounds as leave 50 to the first. The nearest image found is returned. It begins at the
    first random image that meets the goal, so a target that no random image reaches ends in failure.

    Departures: a normal is estimated from the neighbors of all rounds so far, as a flat boundary has but
    one. Neighbors are as far away as HopSkipJump's. Every query is of a file.
    """

    info = Info(
        name="geoda",
        title="Geometric decision-based attack",
        norms=("l2", "linf"),
        paper="Rahmati et al. 2020: GeoDA: A Geometric Framework for Black-Box Adversarial Attacks",
        url="https://arxiv.org/abs/2003.06468",
        access="decisions",
        budget="minimal",
    )

    queries: Queries = 5_000
    steps: Count = Field(20, le=1_000, description="The most rounds: normals that are estimated.")
    growth: Ratio = Field(
        1.4, ge=1, le=10, description="How many times the queries of a round each next one takes."
    )
    low: Ratio = Field(
        1 / 3, gt=0, le=1, description="Share of the frequencies, along each side, that neighbors have."
    )
    starts: Starts = 100

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def footprint(self) -> Footprint:
        """That of an estimate of the normal, and projections on the low frequencies."""
        return replace(
            super().footprint(), images=24, many=self.queries, each=18, piece=NEIGHBOR_BYTES, lines=14
        )

    def run(self, case: Case) -> Plan:
        """Find a start, then a normal and a crossing in each round."""
        best, asked = yield from engine.find_start(case, min(self.starts, self.queries))
        rows = best.met.nonzero().flatten()
        search = engine.bisection_steps(case, 1e-4)
        project = self._low_frequency_projector(case.threat.x0)
        steps = (self.queries - asked[rows]).clamp_max(search)
        x = yield from engine.bisect_boundary(case[rows], best.x[rows], steps)
        none = torch.zeros_like(x).double()
        active = _GeoDARows(case[rows], x, none, self.queries - asked[rows] - steps, rows)
        best = best.put(rows, engine.record_success(active.case, x))
        rounds = self._count_rounds(search)
        for step in range(rounds):
            active = active[active.left > search + MAX_DOUBLINGS]
            if not len(active.row):
                break
            rest = active.left - search - MAX_DOUBLINGS
            # Equal counts but in a row's last round: its noise must not depend on what others draw.
            share = self._neighbors_in_round(step, rounds, search)
            count = rest if step == rounds - 1 else rest.clamp_max(share)
            active = yield from active.step(count, search, project)
            best = best.put(active.row, engine.record_success(active.case, active.x))
        return best.to_found(case)

    def _low_frequency_projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The projection of directions on the waves of low frequency."""
        down, right = (_low_pass(side, math.ceil(self.low * side), x) for side in x.shape[2:])
        return lambda u: down.to(u.dtype) @ u @ right.to(u.dtype)

    def _count_rounds(self, search: int) -> int:
        """The most rounds that leave enough neighbors for the first."""
        enough = takewhile(
            lambda n: self._neighbors_in_round(0, n, search) >= MIN_NEIGHBORS, range(2, self.steps + 1)
        )
        return max(enough, default=1)

    def _neighbors_in_round(self, step: int, rounds: int, search: int) -> int:
        """How many neighbors this round of `rounds` queries, where no image is short of queries."""
        estimates = self.queries - search - rounds * (search + EXPECTED_DOUBLINGS)
        total = sum(self.growth**each for each in range(rounds))
        return max(1, int(estimates * self.growth**step / total))


def _low_pass(side: int, count: int, like: Tensor) -> Tensor:
    """The projector (side, side) on the first waves of the cosine transform along a side."""
    at = torch.arange(side, device=like.device, dtype=torch.float64)
    waves = (math.pi / side * (at + 0.5) * at[:count, None]).cos()
    waves = waves / waves.norm(dim=1, keepdim=True)
    projector: Tensor = waves.T @ waves
    return projector


@dataclass(frozen=True)
class _GeoDARows(engine.Rows):
    """The rows that are not done, each at a point that meets its goal."""

    case: Case
    x: Tensor
    normal_sum: Tensor  # (B, C, H, W) the estimate of the normal from the neighbors of all rounds, float64
    left: Tensor  # (B,) queries
    row: Tensor  # (B,) its index in the whole batch

    def step(self, count: Tensor, search: int, project: Callable[[Tensor], Tensor]) -> PlanOf[_GeoDARows]:
        """Where the normal from the original, estimated from `count` (B,) neighbors, crosses the boundary;
        the same point where it does not.
        """
        case = self.case
        near = engine.probe_distance(case, self.x)
        towards = self.normal_sum + (yield from engine.estimate_normal(case, self.x, count, near, project))
        normal = case.threat.norm.steepest(towards, self.x).to(self.x.dtype)
        far, met, asked = yield from self._find_beyond(normal)
        steps = met * search
        x = yield from engine.bisect_boundary(case, far, steps)
        return replace(self, x=x, normal_sum=towards, left=self.left - count - asked - steps)

    def _find_beyond(self, normal: Tensor) -> PlanOf[tuple[Tensor, Tensor, Tensor]]:
        """The first point along the normal, at doubling distances, that meets the goal; whether there is one,
        and how many were queried.
        """
        x0 = self.case.threat.x0
        length = FIRST_STEP * self.case.threat.distance(self.x)
        far, rows = self.x, torch.arange(len(self.row), device=self.case.device)
        met, asked = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows)
        for doubling in range(MAX_DOUBLINGS):
            reach = engine.column(length[rows] * 2**doubling, far)
            tried = (x0[rows] + reach * normal[rows]).clamp(0, 1)
            case = self.case[rows]
            good = case.goal.is_met((yield case.query(tried)).logits)
            asked = asked.index_add(0, rows, torch.ones_like(rows))
            far, met = far.index_copy(0, rows[good], tried[good]), met.index_fill(0, rows[good], value=True)
            rows = rows[~good]
            if not len(rows):
                break
        return far, met, asked
