"""FMN: a ball that adapts to the distance of the boundary, and steps projected into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.attacks.ddn import project_to_sphere
from touchstone.engine.rows import HostNumbers, per_row
from touchstone.fields import Count, EotSamples, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan, PlanOf

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
LAST_STEP = 0.01
"""The last step, as a part of the first."""
ROOT = {"l1": 1.0, "l0": 2.0}
"""Norms in which steps grow with so many times the root of the radius, not with the radius itself."""
REFERENCE_STEPS = 100
"""Steps that are enough for a ball to shrink by γ at a time."""
TINY = 1e-12


class FMN(MinimalNorm):
    """The fast minimum-norm attack: one gradient moves the image, and tells how large its ball should be.

    The ball's first radius is where the linearized margin reaches zero (its value over the dual norm of its
    gradient, added to the distance so far); once a success is known, the radius shrinks by 1 - γ inside the
    adversarial region and grows by 1 + γ outside. Steps follow the gradient normalized in L2 and are
    projected into ball and box; their length and γ are annealed along cosines (Algorithm 1). L0 counts
    values, a color pixel being three, and its radius moves by at least one value.

    Departures: a step is as long as its ball is wide (in L1 and L0 its length goes with the root of the
    radius), where the paper's have one length whatever the ball; in L∞ it goes along the gradient's sign, so
    that values of small slope come along. A ball grows by at least 1 + γ until a success is known, in L0 to
    twice as many values, since steps to the boundary of the linearized margin may never cross the true one;
    in L0 that boundary sets a first radius, too: the fewest values that reach it within the box. With fewer
    than 100 steps a ball shrinks by more than γ at a time where the linearized margin reaches zero further
    inside; in L2 a step ends on the ball's surface, as in the authors' code; in L1 the projection onto ball
    and box together is exact; the point after the last step is queried, too.
    """

    info = Info(
        name="fmn",
        title="Fast minimum-norm attack",
        norms=("linf", "l2", "l1", "l0"),
        paper="Pintor et al. 2021: Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
        url="https://arxiv.org/abs/2102.12827",
        budget="minimal",
    )

    steps: Count = Field(100, le=10_000, description="Steps; the paper shows up to 1,000.")
    alpha: Ratio = Field(
        1.0,
        gt=0,
        le=1e6,
        description="Length of the first step, as a part of its ball's radius; the last a hundredth of it.",
    )
    gamma: Ratio = Field(
        0.05, gt=0, lt=1, description="By what part the ball shrinks or grows in the first step."
    )
    gamma_final: Ratio = Field(0.001, ge=0, lt=1, description="The same in the last step.")
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """Per step a gradient, and a query of the point after the last."""
        return Cost(forward=self.steps + 1, backward=self.steps)

    def rounds(self) -> int:
        """One per step."""
        return self.steps

    def run(self, case: Case) -> Plan:
        """Steps from ball to ball, from the image itself."""
        x0 = case.threat.x0
        radius = torch.full_like(case.threat.eps, self.norm == "l0")
        left = HostNumbers.full(len(case), self.steps)
        start = AdaptiveBall(case, x0, engine.Nearest.initial(x0), radius, left, self)
        ended = yield from engine.repeat(start)
        answer = yield engine.Logits(ended.x)
        return ended.best.or_else(engine.Nearest.from_logits(case, ended.x, answer.logits)).to_found(case)


@dataclass(frozen=True)
class AdaptiveBall(engine.Loop):
    """Rows that step along their gradients into balls whose radii adapt to the boundary's distance."""

    case: Case
    x: Tensor
    best: Nearest
    radius: Tensor  # (B,)
    left: HostNumbers  # steps
    attack: FMN

    def successes(self) -> tuple[Tensor, Tensor]:
        """The nearest points."""
        return self.best.x, -self.best.distance

    def step(self) -> PlanOf[AdaptiveBall]:
        """Query the gradient, set the radius, and step into the ball."""
        attack, case, x = self.attack, self.case, self.x
        answer = yield engine.Gradient(x, engine.Margin(case.goal))
        best = self.best.or_else(engine.Nearest.from_logits(case, x, answer.logits))
        shares = [(attack.steps - left) / attack.steps for left in self.left.values.tolist()]
        radius = _next_radius(
            case,
            x,
            answer,
            best=best,
            radius=self.radius,
            gammas=[_anneal(attack.gamma, attack.gamma_final, share) for share in shares],
            speedup=max(1, REFERENCE_STEPS / attack.steps),
        )
        lengths = [_anneal(attack.alpha, LAST_STEP * attack.alpha, share) for share in shares]
        length = per_row(lengths, radius) * _step_length(case, radius)
        x = _project(case, _take_step(case, x, answer.gradient, length=length), radius)
        return replace(self, x=x, best=best, radius=radius, left=self.left.add(-1))


def _anneal(first: float, last: float, share: float) -> float:
    """`first` annealed to `last`, after that share of all steps."""
    return last + (first - last) * (1 + cos(pi * share)) / 2


def _next_radius(
    case: Case,
    x: Tensor,
    answer: Answer,
    *,
    best: Nearest,
    radius: Tensor,
    gammas: Sequence[float],
    speedup: float,
) -> Tensor:
    """The next radius of every ball, (B,); `best` includes the answer. Where the boundary is further inside,
    up to `speedup` steps are made in one.
    """
    met, size, way = (
        case.goal.is_met(answer.logits),
        case.threat.distance(x),
        _boundary_distance(case, x, answer),
    )
    fastest = per_row([(1 - gamma) ** speedup for gamma in gammas], radius)
    inside, outside = (size - way).maximum(radius * fastest), size + way
    smaller = inside.minimum(radius * per_row([1 - gamma for gamma in gammas], radius))
    larger = radius * per_row([1 + gamma for gamma in gammas], radius)
    larger = torch.where(best.met, larger, larger.maximum(outside))
    if case.threat.norm.name == "l0":
        least = torch.where(best.met, radius + 1, 2 * radius)
        smaller, larger = smaller.floor().minimum(radius - 1), larger.floor().maximum(least)
    return torch.where(met, smaller.minimum(best.distance), larger).minimum(case.threat.max_distance)


def _boundary_distance(case: Case, x: Tensor, answer: Answer) -> Tensor:
    """How far it is to the boundary from either side, if the margin were linear; in L0, how many values."""
    gap, grad = engine.Margin(case.goal)(answer.logits).abs(), answer.gradient
    if case.threat.norm.name == "l0":
        gain = (grad * torch.where(grad > 0, 1 - x, x)).abs().flatten(1)
        return (gain.sort(1, descending=True).values.cumsum(1) < gap[:, None]).sum(1) + 1.0
    return gap / engine.NORMS[DUAL[case.threat.norm.name]].size(grad).clamp_min(TINY)


def _step_length(case: Case, radius: Tensor) -> Tensor:
    """How long a step is if α is one, (B,)."""
    norm = case.threat.norm.name
    return ROOT[norm] * radius.sqrt() if norm in ROOT else radius


def _take_step(case: Case, x: Tensor, grad: Tensor, *, length: Tensor) -> Tensor:
    """A step of that length along the gradient in L2; in L∞ along its sign, each value so far."""
    direction = engine.Linf() if case.threat.norm.name == "linf" else engine.L2()
    return x + engine.column(length, x) * direction.steepest(grad, x)


def _project(case: Case, x: Tensor, radius: Tensor) -> Tensor:
    """The points brought into ball and box, in L2 onto the ball's surface."""
    threat = case.threat
    if threat.norm.name == "l2":
        return project_to_sphere(case, x, radius)
    endless = x.new_tensor(torch.inf)
    # L0 picks its values before the box cuts their changes.
    low, high = (-endless, endless) if threat.norm.name == "l0" else threat.perturbation_bounds
    return threat.norm.project(x - threat.x0, radius, low, high).add_(threat.x0).clamp_(0, 1)
