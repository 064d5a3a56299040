"""SparseFool: the fewest values that cross the boundary as DeepFool found it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.attacks.deepfool import deepfool_cost, run_deepfool
from touchstone.attacks.fab import project_to_hyperplane
from touchstone.fields import Count, EotSamples, Integer, Norm, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf


class SparseFool(MinimalNorm):
    """Lets DeepFool find a point on the boundary, and crosses the plane through it by changing few values.

    Algorithm 2 of the paper: the plane stands upright on the boundary's normal at DeepFool's point, moved on
    to `reach` times its distance; the values of the steepest slope go as far as the box lets them, one after
    the other (the exact L1 solution). Repeated from there until the model is fooled. Counts values: a pixel
    of three channels is three. A targeted attack lets DeepFool look for its target only, which the paper
    leaves open.
    """

    info = Info(
        name="sparsefool",
        title="SparseFool",
        norms=("l0",),
        paper="Modas, Moosavi-Dezfooli & Frossard 2019: SparseFool: a few pixels make a big difference",
        url="https://arxiv.org/abs/1811.02248",
        budget="minimal",
    )

    norm: Norm = Field("l0", description="The norm in which the perturbation is measured.")
    steps: Count = Field(20, le=1_000, description="The most planes to cross.")
    reach: Ratio = Field(3.0, ge=1, le=100, description="λ: how far the plane is moved beyond the boundary.")
    overshoot: Ratio = Field(0.02, ge=0, le=1, description="How far to go beyond the plane, as a share.")
    inner_steps: Count = Field(50, le=1_000, description="The most steps of DeepFool at a time.")
    candidates: Integer = Field(
        10, ge=2, le=1_000, description="How many of the likeliest classes DeepFool considers."
    )
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """Per plane all of DeepFool, a gradient and a query."""
        inner = deepfool_cost(self.inner_steps, self.candidates)
        return Cost(forward=self.steps * (inner.forward + 2), backward=self.steps * (inner.backward + 1))

    def footprint(self) -> Footprint:
        """That of DeepFool."""
        return replace(super().footprint(), images=26, many=self.candidates - 1, each=2)

    def run(self, case: Case) -> Plan:
        """Plane after plane, from where the last one led; fooled rows leave."""
        whole, x, best = case, case.threat.x0, engine.Nearest.initial(case.threat.x0)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            x = yield from self._cross_plane(case, x)
            found = engine.Nearest.from_logits(case, x, (yield engine.Logits(x)).logits)
            best = best.put(rows, found)
            keep = (~found.met).nonzero().flatten()
            if not len(keep):
                break
            case, x, rows = case[keep], x[keep], rows[keep]
        return best.to_found(whole)

    def _cross_plane(self, case: Case, x: Tensor) -> PlanOf[Tensor]:
        """The points moved, in few values, across the boundary next to them."""
        round_ = replace(case, threat=replace(case.threat, norm=engine.L2()))
        near = yield from run_deepfool(
            round_, x, steps=self.inner_steps, candidates=self.candidates, overshoot=self.overshoot
        )
        normal = (yield engine.Gradient(near.x, engine.Margin(case.goal))).gradient
        gap = self.reach * ((x - near.x) * normal).flatten(1).sum(1)
        return (x + (1 + self.overshoot) * project_to_hyperplane("l1", x, normal, gap)).clamp(0, 1)
