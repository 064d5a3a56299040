"""DDN: a step along the gradient, onto a sphere that shrinks after a success and grows after a failure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import HostNumbers, RowIndex, per_row, to_host
from touchstone.fields import Count, Distance, EotSamples, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from touchstone.engine import Answer, Case, Loss, Nearest, Plan, PlanOf

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
        x0 = case.threat.x0
        radius, best = torch.full_like(case.threat.eps, self.init_norm), engine.Nearest.initial(x0)
        left = HostNumbers.full(len(case), self.steps)
        ended = yield from engine.repeat(ShrinkingSphere(case, x0, best, radius, best.met, left, self))
        answer = yield engine.Logits(ended.x)
        return ended.best.or_else(engine.Nearest.from_logits(case, ended.x, answer.logits)).to_found(case)


@dataclass(frozen=True)
class ShrinkingSphere(engine.Loop):
    """Rows that step along gradients onto spheres that shrink after a success and grow after a failure."""

    case: Case
    x: Tensor
    best: Nearest
    radius: Tensor  # (B,)
    bracketed: Tensor  # (B,) bool: one sphere was enough and a smaller one was not
    left: HostNumbers  # steps
    attack: DDN

    def successes(self) -> tuple[Tensor, Tensor]:
        """The nearest points."""
        return self.best.x, -self.best.distance

    def step(self) -> PlanOf[ShrinkingSphere]:
        """Query the gradient, set the radius, and step onto the sphere."""
        case, x, steps = self.case, self.x, self.attack.steps
        taken = [steps - left for left in self.left.values.tolist()]
        answer = yield engine.Gradient(x, self._loss(taken))
        best = self.best.or_else(engine.Nearest.from_logits(case, x, answer.logits))
        met = case.goal.is_met(answer.logits)
        bracketed = self.bracketed | (best.met & ~met)
        radius = self._next_radius(met, known=best.met, bracketed=bracketed, taken=taken)
        direction = yield from _step_direction(case, x, answer)
        length = engine.column(per_row([_step_length(one / steps) for one in taken], radius), x)
        x = project_to_sphere(case, x + length * direction, radius)
        return replace(self, x=x, best=best, radius=radius, bracketed=bracketed, left=self.left.add(-1))

    def _loss(self, taken: Sequence[int]) -> Loss:
        """The cross-entropy; for rows in the last part of their steps the margin."""
        late = RowIndex.where(one >= MARGIN_AFTER * self.attack.steps for one in taken)
        if not len(late):
            return engine.CrossEntropy(self.case.goal)
        if len(late) == len(taken):
            return engine.Margin(self.case.goal)
        none = torch.zeros_like(self.case.goal.targeted)
        by_margin = none.index_fill(0, late.on(none.device), value=True)
        return engine.CustomLoss(_late_loss, self.case.goal.label, self.case.goal.targeted, by_margin)

    def _next_radius(self, met: Tensor, *, known: Tensor, bracketed: Tensor, taken: Sequence[int]) -> Tensor:
        """Smaller after a success, larger after a failure: by γ once bracketed. The first sphere has the
        radius that was asked for.
        """
        gamma, radius = self.attack.gamma, self.radius
        larger = torch.where(known, radius * (1 + gamma), 2 * radius)
        smaller = torch.where(bracketed, radius * (1 - gamma), radius / 2)
        following = torch.where(met, smaller, larger)
        first = RowIndex.where(one == 0 for one in taken)
        if len(first):
            rows = first.on(radius.device)
            following = following.index_copy(0, rows, radius[rows])
        return following.minimum(self.case.threat.max_distance)


def _late_loss(logits: Tensor, label: Tensor, targeted: Tensor, by_margin: Tensor) -> Tensor:
    goal = engine.Goal(label, targeted)
    return engine.Margin(goal)(logits).where(by_margin, engine.CrossEntropy(goal)(logits))


def _step_length(share: float) -> float:
    """The length of a step after that share of all."""
    return LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + cos(pi * share)) / 2


def _step_direction(case: Case, x: Tensor, answer: Answer) -> PlanOf[Tensor]:
    """The normalized gradient; a random direction where there is none."""
    grad = yield from engine.replace_saturated_gradient(case, x, answer)
    [alive] = to_host(grad.flatten(1).any(1))
    flat = RowIndex.where(not moves for moves in alive)
    if len(flat):
        rows = flat.on(x.device)
        grad = grad.index_copy(0, rows, case.noise[flat].normal(x[rows]))
    return case.threat.norm.steepest(grad, x)


def project_to_sphere(case: Case, x: Tensor, radius: Tensor) -> Tensor:
    """The points moved onto the sphere around their originals, then clipped to the box."""
    d = case.threat.norm.steepest(x - case.threat.x0, x)
    return d.mul_(engine.column(radius, d)).add_(case.threat.x0).clamp_(0, 1)
