"""DDN: a step along the gradient, onto a sphere that shrinks after a success and grows after a failure."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Distance, EotSamples, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Plan, PlanOf

FIRST_STEP, LAST_STEP = 1.0, 0.01
MARGIN_AFTER = 0.75
"""The share of steps after which the gradient is the margin's."""


class DDN(MinimalNorm):
    """Decoupled direction and norm: the gradient gives only the direction, success only the distance.

    Every step goes along the normalized gradient of cross-entropy, its length annealed from 1 to 0.01 along a
    cosine, and ends on a sphere around the image that is smaller by the factor 1 - γ after a success and
    larger by 1 + γ after a failure (Algorithm 1). The nearest success of all steps is kept.

    Departures: spheres double until one is large enough, and then halve until one is too small, since the
    first may be too large or too small by a factor that takes γ most of the steps; in the last quarter the
    gradient is the logit margin's, which points at one class where cross-entropy mixes several; levels are
    rounded to 8 bits after the attack, not inside it, where that would hide small distances; the point after
    the last step is queried, too; a saturated gradient is replaced by the margin's, and only where that
    vanishes as well by a random direction.
    """

    info = Info(
        name="ddn",
        title="Decoupled direction and norm",
        norms=("l2",),
        paper="Rony et al. 2019: Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial "
        "Attacks and Defenses",
        url="https://arxiv.org/abs/1811.09600",
        budget="minimal",
    )

    steps: Count = Field(100, le=10_000, description="Steps; the paper shows 100, 300 and 1,000.")
    gamma: Ratio = Field(
        0.05, gt=0, lt=1, description="By what part the sphere shrinks or grows from step to step."
    )
    init_norm: Distance = Field(1.0, gt=0, description="Radius of the first sphere.")
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """Per step a gradient, at worst a second one where cross-entropy is saturated; a query at the end."""
        return Cost(forward=2 * self.steps + 1, backward=2 * self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def run(self, case: Case) -> Plan:
        """Steps from sphere to sphere, from the image itself."""
        x, radius = case.threat.x0, torch.full_like(case.threat.eps, self.init_norm)
        best = engine.Nearest.initial(x)
        bracketed = best.met
        for step in range(self.steps):
            loss = engine.CrossEntropy if step < MARGIN_AFTER * self.steps else engine.Margin
            answer = yield engine.Gradient(x, loss(case.goal))
            best = best.or_else(engine.Nearest.from_logits(case, x, answer.logits))
            met = case.goal.is_met(answer.logits)
            bracketed = bracketed | (best.met & ~met)
            if step:  # the first sphere has the radius that was asked for
                radius = self._next_radius(radius, met, known=best.met, bracketed=bracketed)
            radius = radius.minimum(case.threat.max_distance)
            direction = yield from _step_direction(case, x, answer)
            x = project_to_sphere(case, x + _step_length(step / self.steps) * direction, radius)
        answer = yield engine.Logits(x)
        return best.or_else(engine.Nearest.from_logits(case, x, answer.logits)).to_found(case)

    def _next_radius(self, radius: Tensor, met: Tensor, *, known: Tensor, bracketed: Tensor) -> Tensor:
        """Smaller after a success, larger after a failure: by γ once one sphere was enough and a smaller one
        was not.
        """
        larger = torch.where(known, radius * (1 + self.gamma), 2 * radius)
        smaller = torch.where(bracketed, radius * (1 - self.gamma), radius / 2)
        return torch.where(met, smaller, larger)


def _step_length(share: float) -> float:
    """The length of a step after that share of all."""
    return LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + cos(pi * share)) / 2


def _step_direction(case: Case, x: Tensor, answer: Answer) -> PlanOf[Tensor]:
    """The normalized gradient; a random direction where there is none."""
    grad = yield from engine.replace_saturated_gradient(case, x, answer)
    flat = ~grad.flatten(1).any(1)
    if bool(flat.any()):
        rows = flat.nonzero().flatten()
        grad = grad.index_copy(0, rows, case.noise[rows].normal(x[rows]))
    return case.threat.norm.steepest(grad, x)


def project_to_sphere(case: Case, x: Tensor, radius: Tensor) -> Tensor:
    """The points moved onto the sphere around their originals, then clipped to the box."""
    d = case.threat.norm.steepest(x - case.threat.x0, x)
    return d.mul_(engine.column(radius, d)).add_(case.threat.x0).clamp_(0, 1)
