"""APGD: projected gradient ascent that sets its own step size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import HostNumbers, RowIndex, Rows
from touchstone.fields import Count, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, RestartedAttack

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from touchstone.engine import Best, Case, Goal, Loss, Plan, PlanOf, Threat

MOMENTUM = 0.75
WIDER_BALLS = ((3, 3), (2, 3))
"""In L1: balls to climb in first, in radii of the real one, and the tenths of the steps that each gets."""
TINY = 1e-12


class APGD(RestartedAttack):
    """Auto-PGD: momentum steps that begin at twice the radius and are halved, from the best point so far,
    whenever progress stalls.

    Algorithm 1 of the paper: at 22 % of the steps and at ever shorter intervals after, a row's step is halved
    where its loss rose in fewer than ρ of the steps since the last check, or neither step nor best loss
    changed. In L1 it is the variant of Croce & Hein 2021 (2103.01208): sparse steps, of two thirds as many
    coordinates as the best point has changed, in balls of three, two and one radius.

    The loss is the cross-entropy or the difference of logits ratio (DLR, equation 6; for targets equation 7,
    with the best other class as the label). The latter is the margin on models of fewer than 3 classes, or 4
    for targets. Keeps the first success, else the highest loss.
    """

    info = Info(
        name="apgd",
        title="Auto-PGD",
        norms=("linf", "l2", "l1"),
        paper="Croce & Hein 2020: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        url="https://arxiv.org/abs/2003.01690",
    )

    loss: Literal["ce", "dlr"] = Field(
        "ce", description="What to climb: the cross-entropy, or the difference of logits ratio."
    )
    steps: Count = Field(100, le=10_000, description="Steps of each attempt.")
    rho: Ratio = Field(
        0.75, ge=0, le=1, description="ρ: the share of steps that must raise the loss for the step to last."
    )

    def cost(self) -> Cost:
        """One climb."""
        return Cost.for_climb(self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def run(self, case: Case) -> Plan:
        """One climb from a random point."""
        loss = engine.CrossEntropy(case.goal) if self.loss == "ce" else dlr_loss(case.goal)
        best = yield from ascend(case, loss, steps=self.steps, rho=self.rho, early_stop=self.early_stop)
        return best.to_found()


def ascend(
    case: Case, loss: Loss, *, steps: int, rho: float, early_stop: bool, image_of_row: Tensor | None = None
) -> PlanOf[Best]:
    """One attempt at every row, as `engine.climb` makes it."""
    if case.threat.norm.name == "l1":
        x, steps = yield from _climb_wider_balls(case, loss, steps)
        rule: engine.StepRule = SparseStep.start(case.threat, x, steps)
    else:
        x = case.threat.random_start(case.noise)
        rule = HalvingStep.start(case.threat, x, steps, rho)
    return (
        yield from engine.climb(
            case, x, rule, steps=steps, early_stop=early_stop, loss=loss, image_of_row=image_of_row
        )
    )


def dlr_loss(goal: Goal) -> Loss:
    """The difference of logits ratio."""
    return engine.CustomLoss(_dlr, goal.label, goal.targeted)


def _dlr(logits: Tensor, label: Tensor, targeted: Tensor) -> Tensor:
    """How much the best other logit exceeds the label's (for a target the reverse), over the spread of the
    highest ones.
    """
    own = logits.gather(1, label[:, None])[:, 0]
    other = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    margin = (other - own).where(~targeted, own - other)
    return margin / dlr_denominator(logits, fourth=targeted)


def dlr_denominator(logits: Tensor, *, fourth: Tensor) -> Tensor:
    """The highest logit less the third, where `fourth` (B,) less the mean of third and fourth; (B,).

    1 on models of fewer classes.
    """
    count = logits.shape[1]
    top = logits.topk(min(4, count), dim=1).values
    one = top.new_ones(len(top))
    three = (top[:, 0] - top[:, 2]).clamp_min(TINY) if count > 2 else one
    four = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(TINY) if count > 3 else one
    return four.where(fourth, three)


@dataclass(frozen=True)
class HighestPoint(Rows):
    """The point of the highest loss so far, with its gradient."""

    x: Tensor  # (B, C, H, W)
    grad: Tensor  # (B, C, H, W)
    loss: Tensor  # (B,)

    def or_else(self, other: HighestPoint) -> HighestPoint:
        """The higher of two points, row by row; of equals the earlier."""
        higher = other.loss > self.loss
        x, grad = select(higher, (other.x, other.grad), (self.x, self.grad))
        return HighestPoint(x, grad, self.loss.maximum(other.loss))


def select(mask: Tensor, ours: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two pairs of images (B, C, H, W) the first where the mask (B,) is set."""
    shaped = engine.column(mask, ours[0])
    return ours[0].where(shaped, others[0]), ours[1].where(shaped, others[1])


@dataclass(frozen=True)
class HalvingStep(Rows):
    """Momentum steps whose size is checked, and halved, at fixed times (L∞ and L2)."""

    rho: float
    checks: frozenset[int]
    at: HostNumbers  # points before this one
    since: Tensor  # (B,) steps since the last check
    size: Tensor  # (B,)
    before: Tensor  # (B, C, H, W) the point before this one
    peak: HighestPoint
    last: Tensor  # (B,) the loss of the point before
    rises: Tensor  # (B,) steps since the last check that raised the loss
    halved: Tensor  # (B,) bool: the step was halved at the last check
    best: Tensor  # (B,) highest loss at the last check

    @classmethod
    def start(cls, threat: Threat, x: Tensor, steps: int, rho: float) -> Self:
        """A rule for `steps` steps from `x`."""
        low = x.new_full((len(x),), -torch.inf)
        none = low.new_zeros(low.shape)
        peak, first = HighestPoint(x, x, low), HostNumbers.full(len(x), 0)
        return cls(rho, checkpoints(steps), first, none, 2 * threat.eps, x, peak, low, none, none > 0, low)

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:
        """The next point: from `x`, or from the best point where the step is halved."""
        first = self.at.values == 0
        rule = self._record_point(HighestPoint(x, grad, loss), first)
        due = [at in rule.checks for at in rule.at.values.tolist()]
        if any(due):
            rule = rule._update_step_size(due)
            halved = rule.halved if all(due) else rule.halved & _to_mask(due, x)
            x, grad = select(halved, (rule.peak.x, rule.peak.grad), (x, grad))
        step = threat.step(x, grad, rule.size)
        if not first.all():
            moved = threat.project(x + MOMENTUM * (step - x) + (1 - MOMENTUM) * (x - self.before))
            step = torch.where(engine.column(_to_mask(first, x), x), step, moved) if first.any() else moved
        return step, replace(rule, at=rule.at.add(1), since=rule.since + 1, before=x)

    def _record_point(self, point: HighestPoint, first: NDArray[np.bool_]) -> Self:
        if first.all():
            return replace(self, peak=point, last=point.loss, best=point.loss)
        rises = self.rises + (point.loss > self.last)
        if not first.any():
            return replace(self, peak=self.peak.or_else(point), last=point.loss, rises=rises)
        index = RowIndex.where(first)
        peak = self.peak.or_else(point).replace_rows(index, point[index])
        rows = index.on(point.loss.device)
        best = self.best.index_copy(0, rows, point.loss[rows])
        return replace(self, peak=peak, last=point.loss, best=best, rises=rises.index_fill(0, rows, 0))

    def _update_step_size(self, due: Sequence[bool]) -> Self:
        """Conditions 1 and 2 of section 3.1, for each row whose check is due."""
        idle = ~self.halved & (self.peak.loss <= self.best)
        halved = (self.rises < self.rho * self.since) | idle
        size = (self.size / 2).where(halved, self.size)
        checked = replace(
            self, since=self.since * 0, size=size, rises=self.rises * 0, halved=halved, best=self.peak.loss
        )
        if all(due):
            return checked
        mask = _to_mask(due, size)
        return replace(
            self,
            since=checked.since.where(mask, self.since),
            size=checked.size.where(mask, self.size),
            rises=checked.rises.where(mask, self.rises),
            halved=checked.halved.where(mask, self.halved),
            best=checked.best.where(mask, self.best),
        )


def _to_mask(flags: Sequence[bool] | NDArray[np.bool_], like: Tensor) -> Tensor:
    """Flags of rows that are known on the host, (B,) bool, on the device of `like`."""
    none = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    return none.index_fill(0, RowIndex.where(flags).on(like.device), value=True)


def checkpoints(steps: int) -> frozenset[int]:
    """The steps after which the size is checked: 22 % of all, then after intervals shorter by 3 % each time,
    of at least 6 %.
    """
    percents, width = [22], 22
    while percents[-1] < 100:
        width = max(width - 3, 6)
        percents.append(percents[-1] + width)
    return frozenset(-(-percent * steps // 100) for percent in percents)


def _climb_wider_balls(case: Case, loss: Loss, steps: int) -> PlanOf[tuple[Tensor, int]]:
    """Start and steps of the last climb in L1, after climbs in wider balls, whose points are not scored."""
    left, x = (
        steps,
        _widen(case, WIDER_BALLS[0][0]).threat.project(case.threat.x0 + case.noise.normal(case.threat.x0)),
    )
    for radii, tenths in WIDER_BALLS:
        wide, count = _widen(case, radii), steps * tenths // 10
        x = wide.threat.project(x)
        rule = SparseStep.start(wide.threat, x, count)
        for _ in range(count):
            x, rule = yield from engine.take_step(wide, x, rule, (yield engine.Gradient(x, loss)))
        x, left = rule.peak.x, left - count
    return case.threat.project(x), left


def _widen(case: Case, radii: int) -> Case:
    return replace(case, threat=replace(case.threat, eps=radii * case.threat.eps))


@dataclass(frozen=True)
class SparseStep(Rows):
    """Steps along the steepest coordinates, as many as the best point needs (L1)."""

    every: int  # steps between checks
    at: HostNumbers  # points before this one
    size: Tensor  # (B,)
    peak: HighestPoint
    share: Tensor  # (B,) of the coordinates, that a step moves
    changed: Tensor  # (B,) coordinates that the best point changed at the last check

    @classmethod
    def start(cls, threat: Threat, x: Tensor, steps: int) -> Self:
        """A rule for `steps` steps from `x`."""
        changed = _count_changes(threat, x)
        peak = HighestPoint(x, x, changed.new_full(changed.shape, -torch.inf))
        every, first = max(1, steps * 4 // 100), HostNumbers.full(len(x), 0)
        return cls(every, first, threat.eps, peak, changed / x[0].numel() / 1.5, changed)

    def advance(self, threat: Threat, x: Tensor, grad: Tensor, loss: Tensor) -> tuple[Tensor, Self]:
        """The next point: from `x`, or from the best point where that has become sparser."""
        rule = replace(self, peak=self.peak.or_else(HighestPoint(x, grad, loss)), at=self.at.add(1))
        due = (self.at.values > 0) & (self.at.values % self.every == 0)
        if due.any():
            rule, sparser = rule._update_sparsity(threat, due)
            x, grad = select(sparser, (rule.peak.x, rule.peak.grad), (x, grad))
        step = engine.column(rule.size, x) * _sparse_direction(grad, rule.share)
        return threat.project(x + step), rule

    def _update_sparsity(self, threat: Threat, due: NDArray[np.bool_]) -> tuple[Self, Tensor]:
        """Where a check is due: the full step where the best point changes fewer coordinates than before,
        else a shorter one; and which rows have become sparser.
        """
        changed = _count_changes(threat, self.peak.x)
        sparser = changed < 0.95 * self.changed
        shorter = (self.size / 1.5).maximum(threat.eps / 10)
        size = threat.eps.where(sparser, shorter)
        share = changed / self.peak.x[0].numel() / 1.5
        if due.all():
            return replace(self, size=size, share=share, changed=changed), sparser
        mask = _to_mask(due, size)
        kept = replace(
            self,
            size=size.where(mask, self.size),
            share=share.where(mask, self.share),
            changed=changed.where(mask, self.changed),
        )
        return kept, sparser & mask


def _count_changes(threat: Threat, x: Tensor) -> Tensor:
    return (x != threat.x0).flatten(1).sum(1).to(x.dtype)


def _sparse_direction(grad: Tensor, share: Tensor) -> Tensor:
    """Signs of the largest `share` (B,) of each gradient, of size one in L1."""
    slope = grad.flatten(1)
    steep = slope.abs().sort(dim=1).values
    last = ((1 - share) * slope.shape[1]).long().clamp(0, slope.shape[1] - 1)
    signs = slope.sign() * (slope.abs() >= steep.gather(1, last[:, None]))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(grad)
