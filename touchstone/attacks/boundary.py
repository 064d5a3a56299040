"""Boundary attack: a random walk along the boundary that keeps every step nearer to the original."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Queries, Ratio, Starts
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Asking, Case, Plan

CHECKED = 5
"""Steps between two looks at the point on the sphere, before the step towards the original."""
SPHERES, STEPS = 20, 30
"""Looks and steps after which the sizes are adapted."""
FACTOR = 1.5
MOST, LEAST = 0.5, 1e-6
FILE_STEP = 1 / 255
"""The least root mean square of a step on the sphere where questions are about files. Less is all rounding: a
point keeps what rounding happens to favour, and no step away from it succeeds.
"""
SEARCH = 1e-3
"""Part of the way at which the bisection from the start ends."""
TINY = 1e-30


class Boundary(MinimalNorm):
    """Decisions alone (algorithm 1): from a point that meets the goal, a random step on the sphere around the
    original, then a step towards the original; where that still meets the goal, go on from there.

    Both sizes are relative to the distance and adapt to how often they succeed, for each image by itself:
    that on the sphere is to succeed in a fifth to a half of all cases, that towards the original in a tenth
    to a quarter. It begins where the way to the first random image that meets the goal crosses the boundary,
    so a target that no random image reaches ends in failure.

    Departures: the start is bisected to the boundary. Sizes adapt after 30 steps, and after 20 looks at the
    sphere, one every fifth step. Every question is about a file, and steps on the sphere are long enough to
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
        """The budget of queries."""
        return Cost(forward=self.queries, backward=0)

    def run(self, case: Case) -> Plan:
        """Find a start, then walk; an image leaves once its budget is used up."""
        best, asked = yield from engine.begun(case, min(self.starts, self.queries))
        rows = best.met.nonzero().flatten()
        left = self.queries - asked[rows]
        search = left.clamp_max(engine.halvings(case[rows], SEARCH))
        x = yield from engine.crossed(case[rows], best.x[rows], search)
        walkers = self._walkers(case[rows], x, rows, left - search)
        spent, step = 0, 1
        while len(walkers.row):
            shortest = int(walkers.left.min())
            while spent + 1 + _looks(step) <= shortest:
                walkers = (yield from walkers.stepped(_looks(step))).adapted(step)
                spent, step = spent + 1 + _looks(step), step + 1
            best = best.put(walkers.row, engine.succeeded(walkers.case, walkers.x))
            walkers = walkers[walkers.left > shortest]
        return best.found(case)

    def _walkers(self, case: Case, x: Tensor, row: Tensor, left: Tensor) -> _Walkers:
        none = case.threat.eps.new_zeros(len(row))
        sizes = (none + self.spherical_step, none + self.source_step)
        return _Walkers(case, x, *sizes, none, none, row, left)


def _looks(step: int) -> int:
    return int(step % CHECKED == 0)


@dataclass(frozen=True)
class _Walkers(engine.Rows):
    """The rows still under way, each at a point that meets its goal."""

    case: Case
    x: Tensor
    spherical: Tensor  # (B,) sizes of the next steps
    source: Tensor
    held: Tensor  # (B,) successes on the sphere since its last adaptation
    kept: Tensor  # (B,) steps kept since the last adaptation
    row: Tensor  # (B,) its place in the whole
    left: Tensor  # (B,) queries at the beginning of the walk

    def stepped(self, looks: int) -> Asking[_Walkers]:
        """One step each; kept where it meets the goal and is nearer. `looks`, 1 or 0, tells whether the point
        on the sphere is asked about, too.
        """
        sphere, tried = self._proposal()
        case, size = self.case, self.case.threat.size
        both = torch.cat([tried, sphere]) if looks else tried
        goal = case.goal[torch.arange(len(both), device=both.device) % len(tried)]
        whole = case.cat([case, case]) if looks else case
        met = goal.met((yield whole.question(both)).logits)
        better = met[: len(tried)] & (size(tried) < size(self.x))
        return replace(
            self,
            x=torch.where(engine.column(better, tried), tried, self.x),
            kept=self.kept + better,
            held=self.held + met[len(tried) :] if looks else self.held,
        )

    def _proposal(self) -> tuple[Tensor, Tensor]:
        """A random point on the sphere around the original, and one nearer to the original from there."""
        threat, norm = self.case.threat, self.case.threat.norm
        d = self.x - threat.x0
        length = norm.size(d).clamp_min(TINY)
        u = self.case.noise.normal(d)
        u = u - d * engine.column((u * d).flatten(1).sum(1) / length.square(), d)
        size = self.spherical
        if self.case.quantize:
            size = size.maximum((FILE_STEP * math.sqrt(d[0].numel()) / length).clamp_max(1))
        u = u * engine.column(size * length / norm.size(u).clamp_min(TINY), d)
        sphere = (threat.x0 + (d + u) / engine.column((1 + size**2).sqrt(), d)).clamp(0, 1)
        # The box may have shortened the way already.
        wanted = (1 - self.source) * length / threat.size(sphere).clamp_min(TINY)
        return sphere, threat.x0.lerp(sphere, engine.column(wanted.clamp_max(1), d))

    def adapted(self, step: int) -> _Walkers:
        """With sizes that succeed more or less often, after as many steps as tell."""
        walkers = self
        if step % (CHECKED * SPHERES) == 0:
            factor = _factor(self.held / SPHERES, 0.2, 0.5)
            walkers = replace(
                walkers,
                spherical=(self.spherical * factor).clamp(LEAST, 1),
                source=(self.source * factor).clamp(LEAST, MOST),
                held=self.held * 0,
            )
        if step % STEPS == 0:
            source = walkers.source * _factor(self.kept / STEPS, 0.1, 0.25)
            walkers = replace(walkers, source=source.clamp(LEAST, MOST), kept=self.kept * 0)
        return walkers


def _factor(rate: Tensor, low: float, high: float) -> Tensor:
    more, less = (rate > high).to(rate.dtype), (rate < low).to(rate.dtype)
    factor: Tensor = FACTOR ** (more - less)
    return factor
