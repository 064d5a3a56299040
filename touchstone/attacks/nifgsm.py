"""NI-FGSM: momentum that looks ahead before it takes the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pydantic import Field

from touchstone import engine
from touchstone.attacks.mifgsm import Momentum
from touchstone.engine.rows import Rows
from touchstone.fields import Count, Distance, Ratio
from touchstone.methods import Cost, GradientAttack, Info

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, Threat


class NIFGSM(GradientAttack):
    """The Nesterov iterative method: the gradient is taken where the momentum would lead, then added to it.

    Section 3.1 of the paper. Unlike there, the point ahead is brought into ball and box, so that it, too,
    can be looked at and kept if it succeeds.
    """

    info = Info(
        name="nifgsm",
        title="Nesterov iterative FGSM",
        norms=("linf",),
        paper="Lin et al. 2020: Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        url="https://arxiv.org/abs/1908.06281",
    )

    steps: Count = Field(10, le=10_000, description="How many steps to take.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means eps/steps.", examples=["1/255"]
    )
    decay: Ratio = Field(1.0, ge=0, le=10, description="μ: what remains of the momentum in the next step.")

    def cost(self) -> Cost:
        """One climb."""
        return Cost.climbing(self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def run(self, case: Case) -> Plan:
        """One climb from the image."""
        eps, x = case.threat.eps, case.threat.x0
        size = eps / self.steps if self.step_size is None else eps.new_full(eps.shape, self.step_size)
        rule = Ahead(x, Momentum(size, x.new_zeros(x.shape), self.decay), self.steps)
        best = yield from engine.climb(case, x, rule, steps=self.steps, early_stop=self.early_stop)
        return best.found()


@dataclass(frozen=True)
class Ahead(Rows):
    """Asks for the gradient a momentum's length ahead of where it stands, and last for where it stands."""

    at: Tensor  # (B, C, H, W)
    momentum: Momentum
    left: int

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:  # noqa: ARG002
        """One step from where it stands, with the gradient at `x` ahead of it."""
        momentum = self.momentum.with_(grad)
        at = threat.step(self.at, momentum.sum, momentum.size)
        rule = replace(self, at=at, momentum=momentum, left=self.left - 1)
        return (rule._ahead(threat) if rule.left else at), rule

    def _ahead(self, threat: Threat) -> Tensor:
        length = engine.column(self.momentum.size * self.momentum.decay, self.at)
        return threat.project(self.at + length * self.momentum.sum)
