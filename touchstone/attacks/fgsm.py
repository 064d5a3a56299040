"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from touchstone import engine
from touchstone.methods import Cost, GradientAttack, Info

if TYPE_CHECKING:
    from touchstone.engine import Case, Plan


class FGSM(GradientAttack):
    """The fast gradient sign method: one step of the whole radius in the direction that raises the loss
    fastest.

    x + ε·sign ∇CE in L∞ (equation in section 4); in L2 and L1 along that norm's own steepest direction. A
    targeted attack descends on the target's cross-entropy.
    """

    info = Info(
        name="fgsm",
        title="Fast gradient sign method",
        norms=("linf", "l2", "l1"),
        paper="Goodfellow, Shlens & Szegedy 2015: Explaining and Harnessing Adversarial Examples",
        url="https://arxiv.org/abs/1412.6572",
    )

    def cost(self) -> Cost:
        """One gradient (two, where cross-entropy is saturated), and a query of the point it leads to,
        rounded and not.
        """
        return Cost(forward=5, backward=2)

    def rounds(self) -> int:
        """One step."""
        return 1

    def run(self, case: Case) -> Plan:
        """One step of the climbing loop, from the image itself."""
        rule = engine.SteepestAscent(case.threat.eps)
        best = yield from engine.climb(case, case.threat.x0, rule, steps=1, early_stop=self.early_stop)
        return best.to_found()
