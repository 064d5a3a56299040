"""Boundary attack: a random walk along the boundary that keeps every step nearer to the original."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Queries, Ratio, Starts
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf

CHECK_EVERY = 5
"""Steps between two queries of the point on the sphere, before the step towards the original."""
CHECKS_PER_UPDATE, STEPS_PER_UPDATE = 20, 30
"""Queries on the sphere, and steps, after which the sizes are adapted."""
FACTOR = 1.5
MAX_STEP, MIN_STEP = 0.5, 1e-6
MIN_FILE_STEP = 1 / 255
"""The least root mean square of a step on the sphere where queries are of files. Smaller steps vanish in the
rounding: a point keeps what rounding happens to favor, and no step away from it succeeds.
"""
SEARCH_THRESHOLD = 1e-3
"""Share of the segment at which the bisection from the start ends."""
TINY = 1e-30


class Boundary(MinimalNorm):
    """Decisions alone (algorithm 1): from a point that meets the goal, a random step on the sphere around the
    original, then a step towards the original; where that still meets the goal, go on from there.

    Both sizes are relative to the distance and adapt to how often they succeed, for each image by itself:
    that on the sphere is to succeed in a fifth to a half of all cases, that towards the original in a tenth
    to a quarter. It begins where the way to the first random image that meets the goal crosses the boundary,
    so a target that no random image reaches ends in failure.

    Departures: the start is bisected to the boundary. Sizes adapt after 30 steps, and after 20 queries on the
    sphere, one every fifth step. Every query is of a file, and steps on the sphere are long enough to
    change it; the walk itself is not bound to files.
    """

    info = Info(
        name="boundary",
        title="Boundary attack",
        norms=("l2",),
        paper="Brendel, Rauber & Bethge 2018: Decision-Based Adversarial Attacks: Reliable Attacks Against "
        "Black-Box Machine Learning Models",
        url="https://arxiv.org/abs/1712.04248",
        access="decisions",
        budget="minimal",
    )

    queries: Queries = 25_000
    spherical_step: Ratio = Field(
        0.01, gt=0, le=1, description="Size of the first step on the sphere, as part of the distance."
    )
    source_step: Ratio = Field(
        0.01,
        gt=0,
        le=0.5,
        description="Size of the first step towards the original, as part of the distance.",
    )
    starts: Starts = 100

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def footprint(self) -> Footprint:
        """Both points that a step proposes."""
        return replace(super().footprint(), images=32)

    def run(self, case: Case) -> Plan:
        """Find a start, then walk; an image leaves once its budget is used up."""
        best, asked = yield from engine.find_start(case, min(self.starts, self.queries))
        rows = best.met.nonzero().flatten()
        left = self.queries - asked[rows]
        search = left.clamp_max(engine.bisection_steps(case[rows], SEARCH_THRESHOLD))
        x = yield from engine.bisect_boundary(case[rows], best.x[rows], search)
        active = self._start_rows(case[rows], x, rows, left - search)
        spent, step = 0, 1
        while len(active.row):
            shortest = int(active.left.min())
            while spent + 1 + _sphere_checks(step) <= shortest:
                active = (yield from active.step(_sphere_checks(step))).adapt(step)
                spent, step = spent + 1 + _sphere_checks(step), step + 1
            best = best.put(active.row, engine.record_success(active.case, active.x))
            active = active[active.left > shortest]
        return best.to_found(case)

    def _start_rows(self, case: Case, x: Tensor, row: Tensor, left: Tensor) -> _BoundaryRows:
        none = case.threat.eps.new_zeros(len(row))
        sizes = (none + self.spherical_step, none + self.source_step)
        return _BoundaryRows(case, x, *sizes, none, none, row, left)


def _sphere_checks(step: int) -> int:
    return int(step % CHECK_EVERY == 0)


@dataclass(frozen=True)
class _BoundaryRows(engine.Rows):
    """The rows that are not done, each at a point that meets its goal."""

    case: Case
    x: Tensor
    spherical: Tensor  # (B,) sizes of the next steps
    source: Tensor
    sphere_successes: Tensor  # (B,) successes on the sphere since its last adaptation
    kept_steps: Tensor  # (B,) steps kept since the last adaptation
    row: Tensor  # (B,) its index in the whole batch
    left: Tensor  # (B,) queries at the beginning of the walk

    def step(self, sphere_queries: int) -> PlanOf[_BoundaryRows]:
        """One step each; kept where it meets the goal and is nearer. With `sphere_queries` of 1, not 0, the
        point on the sphere is queried, too.
        """
        sphere, tried = self._propose()
        case, size = self.case, self.case.threat.distance
        both = torch.cat([tried, sphere]) if sphere_queries else tried
        goal = case.goal[torch.arange(len(both), device=both.device) % len(tried)]
        whole = case.cat([case, case]) if sphere_queries else case
        met = goal.is_met((yield whole.query(both)).logits)
        better = met[: len(tried)] & (size(tried) < size(self.x))
        return replace(
            self,
            x=torch.where(engine.column(better, tried), tried, self.x),
            kept_steps=self.kept_steps + better,
            sphere_successes=self.sphere_successes + met[len(tried) :]
            if sphere_queries
            else self.sphere_successes,
        )

    def _propose(self) -> tuple[Tensor, Tensor]:
        """A random point on the sphere around the original, and one nearer to the original from there."""
        threat, norm = self.case.threat, self.case.threat.norm
        d = self.x - threat.x0
        length = norm.size(d).clamp_min(TINY)
        u = self.case.noise.normal(d)
        u = u - d * engine.column((u * d).flatten(1).sum(1) / length.square(), d)
        size = self.spherical
        if self.case.quantize:
            size = size.maximum((MIN_FILE_STEP * math.sqrt(d[0].numel()) / length).clamp_max(1))
        u = u * engine.column(size * length / norm.size(u).clamp_min(TINY), d)
        sphere = (threat.x0 + (d + u) / engine.column((1 + size**2).sqrt(), d)).clamp(0, 1)
        # Clipping to the box may have shortened the distance already.
        wanted = (1 - self.source) * length / threat.distance(sphere).clamp_min(TINY)
        return sphere, threat.x0.lerp(sphere, engine.column(wanted.clamp_max(1), d))

    def adapt(self, step: int) -> _BoundaryRows:
        """With sizes adapted to how often steps succeeded, after enough steps to estimate that."""
        active = self
        if step % (CHECK_EVERY * CHECKS_PER_UPDATE) == 0:
            factor = _factor(self.sphere_successes / CHECKS_PER_UPDATE, 0.2, 0.5)
            active = replace(
                active,
                spherical=(self.spherical * factor).clamp(MIN_STEP, 1),
                source=(self.source * factor).clamp(MIN_STEP, MAX_STEP),
                sphere_successes=self.sphere_successes * 0,
            )
        if step % STEPS_PER_UPDATE == 0:
            source = active.source * _factor(self.kept_steps / STEPS_PER_UPDATE, 0.1, 0.25)
            active = replace(active, source=source.clamp(MIN_STEP, MAX_STEP), kept_steps=self.kept_steps * 0)
        return active


def _factor(rate: Tensor, low: float, high: float) -> Tensor:
    more, less = (rate > high).to(rate.dtype), (rate < low).to(rate.dtype)
    factor: Tensor = FACTOR ** (more - less)
    return factor
