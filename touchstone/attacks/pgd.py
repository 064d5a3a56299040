"""PGD: many small steps, each projected back into the ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Distance
from touchstone.methods import Cost, FixedBudget, Info

if TYPE_CHECKING:
    from touchstone.engine import Asking, Best, Case, Plan


class PGD(FixedBudget):
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
    restarts: Count = Field(1, le=1_000, description="Attempts, each from its own start.")

    def cost(self) -> Cost:
        """Per attempt: every step a gradient, at worst a second one where cross-entropy is saturated, and
        a rounded look.
        """
        return Cost(forward=self.restarts * (3 * self.steps + 2), backward=self.restarts * 2 * self.steps)

    def rounds(self) -> int:
        """One per step of each attempt."""
        return self.restarts * self.steps

    def run(self, case: Case) -> Plan:
        """Restarted climbs."""
        best = yield from engine.restarted(case, self.restarts, self._attempt, early_stop=self.early_stop)
        return best.found()

    def _attempt(self, case: Case) -> Asking[Best]:
        eps = case.threat.eps
        size = 2.5 * eps / self.steps if self.step_size is None else eps.new_full(eps.shape, self.step_size)
        x = case.threat.random_start(case.noise) if self.random_start else case.threat.x0
        return (
            yield from engine.climb(
                case, x, engine.Steepest(size), steps=self.steps, early_stop=self.early_stop
            )
        )
