"""PGD: many small steps, each projected back into the ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Distance
from touchstone.methods import Cost, E, Info, RestartedAttack, StepSize

if TYPE_CHECKING:
    from touchstone.engine import Case, Plan


class PGD(StepSize, RestartedAttack):
    """Projected gradient descent: steps of fixed size uphill on the loss, projected into the ball after each.

    Starts at a point drawn uniformly from the ball (section 2.1), keeps the first success of every image,
    else its highest loss, and restarts only the images that still resist. In L1 a step goes to the steepest
    coordinates only, and the projection onto ball and box is exact.
    """

    info = Info(
        name="pgd",
        title="Projected gradient descent",
        norms=("linf", "l2", "l1"),
        paper="Madry et al. 2018: Towards Deep Learning Models Resistant to Adversarial Attacks",
        url="https://arxiv.org/abs/1706.06083",
    )

    steps: Count = Field(40, le=10_000, description="Steps of each attempt.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means 2.5·eps/steps.", examples=["2/255"]
    )
    random_start: bool = Field(True, description="Start at a random point of the ball, not at the image.")

    def cost(self) -> Cost:
        """One climb."""
        return Cost.for_climb(self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def default_step_size(self, eps: E) -> E:
        """So that all steps together cross the ball."""
        return 2.5 * eps / self.steps

    def run(self, case: Case) -> Plan:
        """One climb."""
        x = case.threat.random_start(case.noise) if self.random_start else case.threat.x0
        rule = engine.SteepestAscent(self.resolve_step_size(case.threat.eps))
        best = yield from engine.climb(case, x, rule, steps=self.steps, early_stop=self.early_stop)
        return best.to_found()
