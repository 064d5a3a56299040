"""DeepFool: one linearised boundary after another, until the model is fooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Askings, Count, Norm, Ratio, Whole
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Asking, Case, Goal, Nearest, Plan

DUAL = {"linf": 1.0, "l2": 2.0}
TINY, HUGE = 1e-30, 1e30
LEAST = 1e-5
"""The shortest step: leads on from a point that lies on the boundary."""
NUDGE = {"linf": 1e-5, "l2": 1e-4}
"""By how much every step after the first is longer: what is left of the way would shrink for ever."""


class DeepFool(MinimalNorm):
    """Steps onto the nearest of the linearised decision boundaries, until one is crossed.

    Algorithm 2 of the paper in L2, equation 11 in L∞, with the steps' sum lengthened by `overshoot`; points
    are clipped to the box, which the paper leaves out. Boundaries are those between the label and the
    likeliest classes of the original. As in the authors' code, steps after the first are a little longer than
    the way that is left. A targeted attack has only one boundary: that between its target and the best other
    class.
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
    candidates: Whole = Field(
        10, ge=2, le=1_000, description="How many of the likeliest classes to look at, the label included."
    )
    overshoot: Ratio = Field(0.02, ge=0, le=1, description="How far to go beyond the boundary, as a share.")
    eot: Askings = 1

    def cost(self) -> Cost:
        """Per step a look, and where it is not enough a gradient for each rival; a look at the end."""
        return Cost(forward=2 * self.steps + 1, backward=self.steps * (self.candidates - 1))

    def run(self, case: Case) -> Plan:
        """Steps from the image itself."""
        best = yield from deepfool(
            case, case.threat.x0, steps=self.steps, candidates=self.candidates, overshoot=self.overshoot
        )
        return best.found(case)


def deepfool(case: Case, x: Tensor, *, steps: int, candidates: int, overshoot: float) -> Asking[Nearest]:
    """Walk from the points `x`, which need not be the originals; rows leave once they met their goal."""
    start, moved, best = x, engine.torch.zeros_like(x), engine.Nearest.none(x)
    rows, answer = engine.torch.arange(len(x), device=x.device), (yield engine.Logits(x))
    rivals = _rivals(case.goal, answer.logits, candidates - 1)
    for step in range(steps):
        gap, normal = yield from _boundary(case, x, rivals)
        moved = moved + _step(case, gap, normal, nudge=NUDGE.get(case.threat.norm.name, 1e-4) * (step > 0))
        x = (start + (1 + overshoot) * moved).clamp(0, 1)
        found = engine.Nearest.judged(case, x, (yield engine.Logits(x)).logits)
        best = best.put(rows, found)
        if bool(found.met.any()):
            keep = (~found.met).nonzero().flatten()
            if not len(keep):
                break
            case, start, moved, x = case[keep], start[keep], moved[keep], x[keep]
            rows, rivals = rows[keep], rivals[keep]
    return best


def _rivals(goal: Goal, clean: Tensor, count: int) -> Tensor:
    """The likeliest other classes, (B, k)."""
    others = clean.scatter(1, goal.label[:, None], -HUGE)
    return others.topk(min(count, clean.shape[1] - 1)).indices


def _boundary(case: Case, x: Tensor, rivals: Tensor) -> Asking[tuple[Tensor, Tensor]]:
    """How much the nearest rival is behind (B,), and how its lead changes with `x` (B, C, H, W)."""
    if bool(case.goal.targeted.any()):
        answer = yield engine.Gradient(x, engine.Margin(case.goal))
        return engine.Margin(case.goal)(answer.logits), answer.gradient
    answer = yield engine.Jacobian(x, rivals, case.goal.label)
    gaps = answer.logits.gather(1, rivals) - answer.logits.gather(1, case.goal.label[:, None])
    normals = answer.gradient
    slopes = engine.torch.linalg.vector_norm(normals.flatten(2), DUAL.get(case.threat.norm.name, 2.0), 2)
    nearest = (gaps.abs() / slopes.clamp_min(TINY)).argmin(1)
    row = engine.torch.arange(len(x), device=x.device)
    return gaps[row, nearest], normals[row, nearest]


def _step(case: Case, gap: Tensor, normal: Tensor, *, nudge: float) -> Tensor:
    """The shortest move onto the hyperplane gap + <normal, move> = 0, and a nudge further; none where the
    normal is zero.
    """
    linf = case.threat.norm.name == "linf"
    slope = (engine.L1() if linf else engine.L2()).size(normal)
    length = (gap.abs() / slope.clamp_min(TINY) + nudge).clamp(LEAST, HUGE)
    direction = (engine.Linf() if linf else engine.L2()).steepest(normal, normal)
    return engine.column(length, normal) * direction
