"""MI-FGSM: small steps along a momentum of gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import Rows
from touchstone.fields import Count, Distance, Ratio
from touchstone.methods import Cost, E, GradientAttack, Info, StepSize

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, StepRule, Threat

TINY = 1e-30


class MIFGSM(StepSize, GradientAttack):
    """The momentum iterative method: gradients, each divided by the mean of its absolute values, add up in a
    momentum, and steps follow that.

    Algorithm 1 of the paper; g ← μ·g + ∇/‖∇‖₁, then a step of eps/steps along the norm's steepest direction.
    Unlike the paper, every point is projected into ball and box and queried, and the first success is kept.
    """

    info = Info(
        name="mifgsm",
        title="Momentum iterative FGSM",
        norms=("linf", "l2"),
        paper="Dong et al. 2018: Boosting Adversarial Attacks with Momentum",
        url="https://arxiv.org/abs/1710.06081",
    )

    steps: Count = Field(10, le=10_000, description="How many steps to take.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means eps/steps.", examples=["1/255"]
    )
    decay: Ratio = Field(1.0, ge=0, le=10, description="μ: what remains of the momentum in the next step.")

    def cost(self) -> Cost:
        """One climb."""
        return Cost.for_climb(self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def default_step_size(self, eps: E) -> E:
        """So that all steps together are as long as the radius."""
        return eps / self.steps

    def run(self, case: Case) -> Plan:
        """One climb from the image."""
        x = case.threat.x0
        rule = self.step_rule(
            x, Momentum(self.resolve_step_size(case.threat.eps), x.new_zeros(x.shape), self.decay)
        )
        best = yield from engine.climb(case, x, rule, steps=self.steps, early_stop=self.early_stop)
        return best.to_found()

    def step_rule(self, _x: Tensor, momentum: Momentum) -> StepRule:
        """How a point moves."""
        return momentum


@dataclass(frozen=True)
class Momentum(Rows):
    """A step along the sum of all gradients so far, of which older ones count less."""

    size: Tensor  # (B,)
    sum: Tensor  # (B, C, H, W)
    decay: float

    def add_gradient(self, grad: Tensor) -> Self:
        """The momentum with one more gradient."""
        scale = grad.flatten(1).abs().mean(1).clamp_min(TINY)
        return replace(self, sum=self.decay * self.sum + grad / engine.column(scale, grad))

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:  # noqa: ARG002
        """One step of the climb."""
        rule = self.add_gradient(grad)
        return threat.step(x, rule.sum, self.size), rule
