"""BIM: FGSM in small steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Distance
from touchstone.methods import Cost, E, GradientAttack, Info, StepSize

if TYPE_CHECKING:
    from touchstone.engine import Case, Plan


class BIM(StepSize, GradientAttack):
    """The basic iterative method: small steps from the image itself, each projected into ball and box.

    Section 2.2 of the paper, which works in L∞; other norms take steps in their own steepest direction. Steps
    are a fifth of the radius, where the paper takes one level of 8 bits and counts the steps by the radius.
    Keeps the first success, else the highest loss.
    """

    info = Info(
        name="bim",
        title="Basic iterative method",
        norms=("linf", "l2", "l1"),
        paper="Kurakin, Goodfellow & Bengio 2017: Adversarial Examples in the Physical World",
        url="https://arxiv.org/abs/1607.02533",
    )

    steps: Count = Field(10, le=10_000, description="How many steps to take.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means eps/5.", examples=["1/255"]
    )

    def cost(self) -> Cost:
        """One climb."""
        return Cost.for_climb(self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def default_step_size(self, eps: E) -> E:
        """A fifth of the radius."""
        return eps / 5

    def run(self, case: Case) -> Plan:
        """One climb from the image."""
        rule = engine.SteepestAscent(self.resolve_step_size(case.threat.eps))
        best = yield from engine.climb(
            case, case.threat.x0, rule, steps=self.steps, early_stop=self.early_stop
        )
        return best.to_found()
