"""DeepFool: one linearized boundary after another, until the model is fooled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, EotSamples, Integer, Norm, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Goal, Hyperplanes, Nearest, Plan, PlanOf

DUAL = {"linf": 1.0, "l2": 2.0}
TINY, HUGE = 1e-30, 1e30
RIVALS_PER_STEP = 2
"""How many boundaries each step after the first queries."""
MIN_STEP = 1e-5
"""The shortest step: it leaves a point that lies on the boundary."""
NUDGE = {"linf": 1e-5, "l2": 1e-4}
"""By how much every step after the first is longer: otherwise steps would shrink without crossing."""


class DeepFool(MinimalNorm):
    """Steps onto the nearest of the linearized decision boundaries, until one is crossed.

    Algorithm 2 of the paper in L2, equation 11 in L∞, with the steps' sum lengthened by `overshoot`; points
    are clipped to the box, which the paper leaves out. Boundaries are those between the label and the
    likeliest classes of the original. Departure: only the first step queries all of them, later ones the
    two that were nearest at the point before, by their leads there and the last known slope of each. As in
    the authors' code, steps after the first are a little longer than the way that is left. A targeted attack
    has only one boundary: that between its target and the best other class.
    """

    info = Info(
        name="deepfool",
        title="DeepFool",
        norms=("linf", "l2"),
        paper="Moosavi-Dezfooli, Fawzi & Frossard 2016: DeepFool: a simple and accurate method to fool deep"
        " neural networks",
        url="https://arxiv.org/abs/1511.04599",
        budget="minimal",
    )

    norm: Norm = Field("l2", description="The norm in which the perturbation is measured.")
    steps: Count = Field(50, le=10_000, description="The most steps.")
    candidates: Integer = Field(
        10, ge=2, le=1_000, description="How many of the likeliest classes to consider, the label included."
    )
    overshoot: Ratio = Field(0.02, ge=0, le=1, description="How far to go beyond the boundary, as a share.")
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """A query before and after; a gradient for each rival in the first step, then for the nearest. For
        large images each gradient takes a forward pass of its own.
        """
        return deepfool_cost(self.steps, self.candidates)

    def footprint(self) -> Footprint:
        """A piece of the gradients of the rivals' leads."""
        return replace(super().footprint(), images=22, many=self.candidates - 1, each=2)

    def run(self, case: Case) -> Plan:
        """Steps from the image itself."""
        best = yield from run_deepfool(
            case, case.threat.x0, steps=self.steps, candidates=self.candidates, overshoot=self.overshoot
        )
        return best.to_found(case)


@dataclass(frozen=True)
class DeepFoolRows(engine.Rows):
    """The rows that are not done, with the classes that they may turn into, nearest first."""

    case: Case
    start: Tensor
    perturbation: Tensor
    rivals: Tensor  # (B, k)
    slopes: Tensor  # (B, k) of their leads, when they were last queried
    row: Tensor  # (B,) its index in the whole batch

    @classmethod
    def start_at(cls, case: Case, x: Tensor, rivals: Tensor) -> DeepFoolRows:
        """At the points `x`."""
        nowhere, unknown = torch.zeros_like(x), rivals.to(x.dtype)
        return cls(case, x, nowhere, rivals, unknown, torch.arange(len(x), device=x.device))

    def query(self, x: Tensor, max_rivals: int) -> PlanOf[Answer | Hyperplanes]:
        """How the leads of the nearest rivals change, of so many at most; of a target, its own lead."""
        goal = self.case.goal
        if bool(goal.targeted.any()):
            return (yield engine.Gradient(x, engine.Margin(goal)))
        dual = DUAL.get(self.case.threat.norm.name, 2.0)
        return (yield from engine.query_hyperplanes(x, self.rivals[:, :max_rivals], goal.label, dual))

    def rank_rivals(self, answer: Answer | Hyperplanes) -> tuple[DeepFoolRows, Tensor, Tensor]:
        """The same with the rivals by their distance at the point that the answer is about; and of those
        asked about the nearest: how much it is behind (B,), and how its lead changes (B, C, H, W).
        """
        if isinstance(answer, engine.Answer):
            return self, answer.known_loss, answer.gradient
        gaps = engine.class_leads(answer.logits, self.rivals, self.case.goal.label)
        slopes = torch.cat([answer.slopes, self.slopes[:, answer.slopes.shape[1] :]], 1)
        order = (gaps.abs() / slopes.clamp_min(TINY)).argsort(1)
        walk = replace(self, rivals=self.rivals.gather(1, order), slopes=slopes.gather(1, order))
        return walk, answer.nearest_gap, answer.normal


def deepfool_cost(steps: int, candidates: int) -> Cost:
    """The most that `run_deepfool` asks."""
    rivals = candidates - 1
    gradients = rivals + (steps - 1) * min(RIVALS_PER_STEP, rivals)
    return Cost(forward=gradients + 2, backward=gradients)


def run_deepfool(case: Case, x: Tensor, *, steps: int, candidates: int, overshoot: float) -> PlanOf[Nearest]:
    """Walk from the points `x`, which need not be the originals; rows leave once they met their goal."""
    best = engine.Nearest.initial(x)
    active = DeepFoolRows.start_at(
        case, x, _find_rivals(case.goal, (yield engine.Logits(x)).logits, candidates - 1)
    )
    for step in range(steps):
        answer = yield from active.query(x, RIVALS_PER_STEP if step else candidates)
        found = engine.Nearest.from_logits(active.case, x, answer.logits)
        best = best.put(active.row, found)
        if bool(found.met.any()):
            keep = (~found.met).nonzero().flatten()
            if not len(keep):
                return best
            active, answer = active[keep], answer[keep]
        active, gap, normal = active.rank_rivals(answer)
        nudge = NUDGE.get(case.threat.norm.name, 1e-4) * (step > 0)
        active = replace(
            active, perturbation=active.perturbation + _shortest_step(active.case, gap, normal, nudge=nudge)
        )
        x = (active.start + (1 + overshoot) * active.perturbation).clamp(0, 1)
    return best.put(active.row, engine.Nearest.from_logits(active.case, x, (yield engine.Logits(x)).logits))


def _find_rivals(goal: Goal, clean: Tensor, count: int) -> Tensor:
    """The likeliest other classes, (B, k)."""
    others = clean.scatter(1, goal.label[:, None], -HUGE)
    return others.topk(min(count, clean.shape[1] - 1)).indices


def _shortest_step(case: Case, gap: Tensor, normal: Tensor, *, nudge: float) -> Tensor:
    """The shortest move onto the hyperplane gap + <normal, move> = 0, and a nudge further; none where the
    normal is zero.
    """
    linf = case.threat.norm.name == "linf"
    slope = (engine.L1() if linf else engine.L2()).size(normal)
    length = (gap.abs() / slope.clamp_min(TINY) + nudge).clamp(MIN_STEP, HUGE)
    direction = (engine.Linf() if linf else engine.L2()).steepest(normal, normal)
    return engine.column(length, normal) * direction
