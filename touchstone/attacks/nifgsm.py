"""NI-FGSM: momentum with the gradient taken ahead of the point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from touchstone import engine
from touchstone.attacks.mifgsm import MIFGSM, Momentum
from touchstone.engine.rows import HostNumbers, RowIndex, Rows
from touchstone.methods import Info

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import StepRule, Threat


class NIFGSM(MIFGSM):
    """The Nesterov iterative method: the gradient is taken where the momentum would lead, then added to it.

    Section 3.1 of the paper. Unlike there, the point ahead is brought into ball and box, so that it, too,
    can be queried and kept if it succeeds.
    """

    info = Info(
        name="nifgsm",
        title="Nesterov iterative FGSM",
        norms=("linf",),
        paper="Lin et al. 2020: Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        url="https://arxiv.org/abs/1908.06281",
    )

    def step_rule(self, x: Tensor, momentum: Momentum) -> StepRule:
        """The momentum's, a look ahead of it."""
        return NesterovStep(x, momentum, HostNumbers.full(len(x), self.steps))


@dataclass(frozen=True)
class NesterovStep(Rows):
    """Takes gradients one momentum step ahead of its point; the last query is of the point itself."""

    at: Tensor  # (B, C, H, W)
    momentum: Momentum
    left: HostNumbers

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:  # noqa: ARG002
        """One step from the point, with the gradient at `x` ahead of it."""
        momentum = self.momentum.add_gradient(grad)
        at = threat.step(self.at, momentum.sum, momentum.size)
        rule = replace(self, at=at, momentum=momentum, left=self.left.add(-1))
        last = RowIndex.where(rule.left.values == 0)
        if not len(last):
            return rule._look_ahead(threat), rule
        if len(last) == len(at):
            return at, rule
        rows = last.on(at.device)
        return rule._look_ahead(threat).index_copy(0, rows, at[rows]), rule

    def _look_ahead(self, threat: Threat) -> Tensor:
        length = engine.column(self.momentum.size * self.momentum.decay, self.at)
        return threat.project(self.at + length * self.momentum.sum)
