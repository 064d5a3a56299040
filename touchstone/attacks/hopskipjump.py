"""HopSkipJump: to the boundary, its normal from decisions around, a step along it, and again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.pieces import NEIGHBOR_BYTES
from touchstone.fields import Count, Queries, Ratio, Starts
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Nearest, Plan, PlanOf

MAX_HALVINGS = 20
"""The most halvings of a step that does not reach the goal."""
FIRST_RADIUS = 0.1
"""Distance of the neighbors in the first round."""


class HopSkipJump(MinimalNorm):
    """Decisions alone (algorithm 2): bisect the way to the boundary, ask about random neighbors of the point
    there, and step along the mean of the directions that meet the goal less those that do not. The step is
    halved until it meets the goal; then the next round begins.

    Round t asks about `evaluations`·√t neighbors at a distance of 1/d of the perturbation's length. The
    nearest image found is returned when `queries` are used up, or after all rounds. It begins at the first
    random image that meets the goal, so a target that no random image reaches ends in failure.

    Departures: every query is of a file, so neighbors are as far away as eight bits can tell apart and
    the directions are those of the rounded neighbors. Random images of coarser grain follow if the first
    does not meet the goal. A step is halved 20 times at most.
    """

    info = Info(
        name="hopskipjump",
        title="HopSkipJump attack",
        norms=("l2", "linf"),
        paper="Chen, Jordan & Wainwright 2020: HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
        url="https://arxiv.org/abs/1904.02144",
        access="decisions",
        budget="minimal",
    )

    queries: Queries = 5_000
    steps: Count = Field(64, le=10_000, description="The most rounds of estimate, step and bisection.")
    evaluations: Count = Field(
        100, le=100_000, description="Neighbors in the first round; the t-th takes √t times as many."
    )
    gamma: Ratio = Field(
        1.0, gt=0, le=1e6, description="Bisection ends at γ/(d·√d) of the way, in L∞ at γ/d²."
    )
    starts: Starts = 100

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def footprint(self) -> Footprint:
        """The neighbors of an estimate, whose values are bounded, and its sums in float64."""
        return replace(super().footprint(), images=22, many=self.queries, each=18, piece=NEIGHBOR_BYTES)

    def run(self, case: Case) -> Plan:
        """Find a start, and approach in rounds; an image is done once its budget is too small for a round."""
        best, asked = yield from engine.find_start(case, min(self.starts, self.queries))
        rows = best.met.nonzero().flatten()
        search = self._bisection_steps(case)
        active = _HopSkipJumpRows(case[rows], best.x[rows], self.queries - asked[rows], rows)
        steps = active.left.clamp_max(search)
        active, nearest = yield from active.bisect(best.x[rows], steps)
        best = best.put(rows, nearest)
        for t in range(1, self.steps + 1):
            active = active[active.left > search + 2]
            if not len(active.row):
                break
            count = (active.left - search - 1).clamp_max(math.floor(self.evaluations * math.sqrt(t)))
            normal = yield from engine.estimate_unit_normal(
                active.case, active.x, count, active.probe_radius(t)
            )
            active = replace(active, left=active.left - count)
            active, far = yield from active.step(normal, t, search)
            active, nearest = yield from active.bisect(far, torch.full_like(active.left, search))
            best = best.put(active.row, nearest)
        return best.to_found(case)

    def _bisection_steps(self, case: Case) -> int:
        d = case.threat.x0[0].numel()
        power = 2.0 if case.threat.norm.name == "linf" else 1.5
        return engine.bisection_steps(case, min(1.0, self.gamma / d**power))


@dataclass(frozen=True)
class _HopSkipJumpRows(engine.Rows):
    """The rows that are not done, each at a point that meets its goal."""

    case: Case
    x: Tensor
    left: Tensor  # (B,) queries
    row: Tensor  # (B,) its index in the whole batch

    def probe_radius(self, t: int) -> Tensor:
        """How far from each point its neighbors are in round t, (B,)."""
        near = engine.probe_distance(self.case, self.x)
        return near if t > 1 else near.clamp_min(FIRST_RADIUS)

    def step(self, normal: Tensor, t: int, reserve: int) -> PlanOf[tuple[_HopSkipJumpRows, Tensor]]:
        """Steps along the normals, each halved until it meets the goal or only a `reserve` of its queries is
        left: where they lead, or the points themselves.
        """
        far, left = self.x, self.left
        size = self.case.threat.distance(self.x) / math.sqrt(t)
        rows = torch.arange(len(left), device=left.device)
        for halving in range(MAX_HALVINGS):
            rows = rows[left[rows] > reserve]
            if not len(rows):
                break
            case, length = self.case[rows], engine.column(size[rows] / 2**halving, far)
            tried = (self.x[rows] + length * normal[rows]).clamp(0, 1)
            met = case.goal.is_met((yield case.query(tried)).logits)
            left = left.index_add(0, rows, torch.full_like(rows, -1))
            far = far.index_copy(0, rows[met], tried[met])
            rows = rows[~met]
        return replace(self, left=left), far

    def bisect(self, far: Tensor, steps: Tensor) -> PlanOf[tuple[_HopSkipJumpRows, Nearest]]:
        """At the boundary on the way back from `far`, by `steps` (B,) queries."""
        x = yield from engine.bisect_boundary(self.case, far, steps)
        moved = replace(self, x=x, left=self.left - steps)
        return moved, engine.record_success(self.case, x)
