"""GeoDA: the boundary's normal at one point, and from the original along it to the boundary, a few times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Ratio
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Asking, Case, Plan

GROWTHS = 12
"""Doublings of the distance from the original before a direction is given up."""
USUAL = 3
"""How many doublings a round is reckoned to take."""
FIRST = 0.5
"""Size of the first step from the original along a normal, as part of the distance of the point before."""


class GeoDA(MinimalNorm):
    """Decisions alone, for boundaries that are nearly flat (algorithm 1): estimate the normal at a point of
    the boundary from random neighbours, then go from the original along it (along its signs in L∞) to where
    it crosses the boundary; repeat from there.

    Queries are shared out over the rounds so that each takes `growth` times those of the one before, the
    paper's λ^(-2/3). The nearest image found is returned. It begins at the first random image that meets the
    goal, so a target that no random image reaches ends in failure.

    Departures: neighbours are drawn from all directions, not from a subspace of low frequencies, and are as
    far away as HopSkipJump's. Every question is about a file.
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

    queries: Count = Field(
        5_000, le=10_000_000, description="The most times that the model is asked about one image."
    )
    steps: Count = Field(8, le=1_000, description="Rounds: normals that are estimated.")
    growth: Ratio = Field(
        1.4, ge=1, le=10, description="How many times the queries of a round each next one takes."
    )
    starts: Count = Field(
        100, le=100_000, description="The most random images that are tried for one that meets the goal."
    )

    def cost(self) -> Cost:
        """The budget of queries."""
        return Cost(forward=self.queries, backward=0)

    def run(self, case: Case) -> Plan:
        """Find a start, then a normal and a crossing in each round."""
        best, asked = yield from engine.begun(case, min(self.starts, self.queries))
        rows = best.met.nonzero().flatten()
        search = engine.halvings(case, 1e-4)
        steps = (self.queries - asked[rows]).clamp_max(search)
        x = yield from engine.crossed(case[rows], best.x[rows], steps)
        climbers = _Climbers(case[rows], x, self.queries - asked[rows] - steps, rows)
        best = best.put(rows, engine.succeeded(climbers.case, x))
        for step in range(self.steps):
            climbers = climbers[climbers.left > search + GROWTHS]
            if not len(climbers.row):
                break
            rest = climbers.left - search - GROWTHS
            # Equal counts but in a row's last round: its noise must not depend on what others draw.
            count = rest if step == self.steps - 1 else rest.clamp_max(self._share(step, search))
            climbers = yield from climbers.climbed(count, search)
            best = best.put(climbers.row, engine.succeeded(climbers.case, climbers.x))
        return best.found(case)

    def _share(self, step: int, search: int) -> int:
        """How many neighbours are asked about in this round, where no image is short of queries."""
        estimates = self.queries - search - self.steps * (search + USUAL)
        total = sum(self.growth**each for each in range(self.steps))
        return max(1, int(estimates * self.growth**step / total))


@dataclass(frozen=True)
class _Climbers(engine.Rows):
    """The rows still under way, each at a point that meets its goal."""

    case: Case
    x: Tensor
    left: Tensor  # (B,) queries
    row: Tensor  # (B,) its place in the whole

    def climbed(self, count: Tensor, search: int) -> Asking[_Climbers]:
        """Where the normal from the original, estimated from `count` (B,) neighbours, crosses the boundary;
        the same point where it does not.
        """
        case = self.case
        normal = yield from engine.normal_at(case, self.x, count, engine.nearby(case, self.x))
        far, met, asked = yield from self._beyond(normal)
        steps = met * search
        x = yield from engine.crossed(case, far, steps)
        return replace(self, x=x, left=self.left - count - asked - steps)

    def _beyond(self, normal: Tensor) -> Asking[tuple[Tensor, Tensor, Tensor]]:
        """The first point along the normal, at doubling distances, that meets the goal; whether there is one,
        and how many were asked about.
        """
        torch, x0 = engine.torch, self.case.threat.x0
        length = FIRST * self.case.threat.size(self.x)
        far, rows = self.x, torch.arange(len(self.row), device=self.case.device)
        met, asked = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows)
        for doubling in range(GROWTHS):
            reach = engine.column(length[rows] * 2**doubling, far)
            tried = (x0[rows] + reach * normal[rows]).clamp(0, 1)
            case = self.case[rows]
            good = case.goal.met((yield case.question(tried)).logits)
            asked = asked.index_add(0, rows, torch.ones_like(rows))
            far, met = far.index_copy(0, rows[good], tried[good]), met.index_fill(0, rows[good], value=True)
            rows = rows[~good]
            if not len(rows):
                break
        return far, met, asked
