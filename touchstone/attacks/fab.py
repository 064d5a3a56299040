"""FAB: steps onto the linearized decision boundary, drawn back towards the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, EotSamples, Natural, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Goal, Nearest, Plan, PlanOf, Threat

    BoundaryQuery = Callable[[Case, Tensor, Tensor], PlanOf[tuple[Tensor, Tensor]]]

FINAL_STEPS = 3
RIVALS = 9
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
RESTART_DISTANCE = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""How far a restart may begin from an image that has no radius."""
TINY, HUGE = 1e-30, 1e30
IMAGES_PER_RIVAL = {"linf": 16, "l2": 16, "l1": 24}
"""Tensors that an attempt holds in its norm, with those of a step."""


class FAB(MinimalNorm):
    """The fast adaptive boundary attack: projects point and original onto the linearized boundary within the
    box, and goes on from a mean of both.

    Algorithm 1 of the paper. The projections onto hyperplane and box are exact in all three norms; where the
    hyperplane misses the box they lead to the corner nearest to it. A point that fools the model is kept if
    it is the nearest so far, and drawn back to `backward` of its perturbation. Three steps of false position
    between the original and what was found end the search. Restarts begin within half of the distance found.

    Up to ten classes, each step queries all boundaries and heads for the nearest. With `rivals`, or more
    classes, it is FAB-T: an attempt for each of the likeliest other classes, one gradient a step; they share
    their passes, where the paper makes one attempt after the other. `rivals=0` always queries several
    boundaries: those of the nine likeliest others, where the paper takes all classes. A targeted attack
    follows the boundary between its target and the best other class.
    """

    info = Info(
        name="fab",
        title="Fast adaptive boundary attack",
        norms=("linf", "l2", "l1"),
        paper="Croce & Hein 2020: Minimally distorted Adversarial Examples with a Fast Adaptive Boundary"
        " Attack",
        url="https://arxiv.org/abs/1907.02044",
        budget="minimal",
    )

    steps: Count = Field(100, le=10_000, description="Steps of each attempt.")
    restarts: Count = Field(
        1, le=1_000, description="Attempts for each boundary: the first from the image, others from nearby."
    )
    rivals: Natural | None = Field(
        None,
        description="How many of the likeliest other classes to head for, each on its own; 0 queries all "
        "boundaries in each step; unset means 0 up to ten classes, and 9 beyond.",
    )
    alpha_max: Ratio = Field(0.1, ge=0, le=1, description="The most weight that the original gets in a step.")
    overshoot: Ratio = Field(
        1.05, ge=1, le=2, description="η: length of a step, in distances to the boundary."
    )
    backward: Ratio = Field(
        0.9, gt=0, le=1, description="β: what remains of a found perturbation when it is drawn back."
    )
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """A step takes a gradient (or one for each of nine rivals, which for large images take a forward pass
        each) and a query; then the final search.
        """
        attempts = self.restarts * self.steps
        ahead = attempts * (self.rivals or RIVALS)
        return Cost(forward=2 * ahead + 1 + FINAL_STEPS, backward=attempts * (self.rivals or RIVALS))

    def resolve_defaults(self, classes: int) -> dict[str, Any]:
        """The number of its rivals."""
        return {"rivals": self._count_rivals(classes - 1)}

    def _count_rivals(self, others: int) -> int:
        """How many of the other classes it heads for."""
        return (0 if others <= RIVALS else RIVALS) if self.rivals is None else self.rivals

    def footprint(self) -> Footprint:
        """As many attempts at once as there are classes to head for; else a piece of the gradients."""
        rivals, own = (RIVALS if self.rivals is None else self.rivals), super().footprint()
        if rivals:
            return replace(own, images=16 + rivals * IMAGES_PER_RIVAL[self.norm])
        return replace(own, images=own.images + 4, many=RIVALS, each=2)

    def run(self, case: Case) -> Plan:
        """Attempts for all boundaries at once, then the final search. Where the case has a radius, an image
        leaves with all its attempts as soon as one of them found a point within it.
        """
        clean = (yield engine.Logits(case.threat.x0)).logits
        best = engine.Nearest.initial(case.threat.x0)
        boundary_query, rivals = self._choose_boundary(case.goal, clean)
        for attempt in range(self.restarts):
            rows = (~_within_radius(case, best)).nonzero().flatten()
            if not len(rows):
                break
            image_of_row = rows.repeat_interleave(rivals.shape[1])
            start = (
                _random_start(case[image_of_row], best[image_of_row])
                if attempt
                else case.threat.x0[image_of_row]
            )
            found = yield from self._run_attempt(
                case[image_of_row], start, boundary_query, rivals[rows].flatten(0, 1), image_of_row
            )
            best = best.put(rows, _nearest_of(found, rivals.shape[1]))
        best = yield from _final_search(case, best, engine.Margin(case.goal)(clean))
        return best.to_found(case)

    def _choose_boundary(self, goal: Goal, clean: Tensor) -> tuple[BoundaryQuery, Tensor]:
        """How an attempt queries the boundary that it heads for, and the classes of each of k attempts at an
        image, (B, k, n).
        """
        if bool(goal.targeted.any()):
            return _goal_boundary, goal.label[:, None, None]
        others = clean.shape[1] - 1
        count = self._count_rivals(others)
        ranked = clean.scatter(1, goal.label[:, None], -HUGE).topk(min(count or RIVALS, others)).indices
        return (_rival_boundary, ranked[:, :, None]) if count else (_nearest_boundary, ranked[:, None])

    def _run_attempt(
        self, case: Case, x: Tensor, boundary_query: BoundaryQuery, rivals: Tensor, image_of_row: Tensor
    ) -> PlanOf[Nearest]:
        """From the points `x`; rows with the same number in `image_of_row` (B,) are of the same image."""
        best, rows = engine.Nearest.initial(case.threat.x0), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            gap, normal = yield from boundary_query(case, x, rivals)
            x = self._next_points(case.threat, x, gap, normal)
            found = engine.Nearest.from_logits(case, x, (yield engine.Logits(x)).logits)
            best = best.put(rows, found)
            x = case.threat.x0.lerp(x, engine.column(1 - (1 - self.backward) * found.met.to(x.dtype), x))
            if bool((done := _within_radius(case, found)).any()):
                keep = ~torch.isin(image_of_row, image_of_row[done])
                if not bool(keep.any()):
                    break
                case, x, rivals, image_of_row, rows = (
                    case[keep],
                    x[keep],
                    rivals[keep],
                    image_of_row[keep],
                    rows[keep],
                )
        return best

    def _next_points(self, threat: Threat, x: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """Equation 7: a mean of the two overshot projections, nearer to that which is the shorter way."""
        x0, norm = threat.x0, threat.norm
        ours = project_to_hyperplane(norm.name, x, normal, gap)
        gap0 = gap + ((x0 - x) * normal).flatten(1).sum(1)
        theirs = project_to_hyperplane(norm.name, x0, normal, gap0)
        size, size0 = norm.size(ours), norm.size(theirs)
        alpha = engine.column((size / (size + size0).clamp_min(TINY)).clamp_max(self.alpha_max), x)
        return (x + self.overshoot * ours).lerp(x0 + self.overshoot * theirs, alpha).clamp(0, 1)


def _within_radius(case: Case, best: Nearest) -> Tensor:
    """Which rows have a radius, and a success within it, (B,)."""
    return (best.distance <= case.threat.eps) & case.threat.eps.isfinite()


def _nearest_of(best: Nearest, count: int) -> Nearest:
    """The nearest of every `count` neighboring rows."""
    return reduce(engine.Nearest.or_else, (best[at::count] for at in range(count)))


def _random_start(case: Case, best: Nearest) -> Tensor:
    """A random point within half of the distance found, of the radius, or of the usual reach."""
    reach = case.threat.eps.where(case.threat.eps.isfinite(), RESTART_DISTANCE[case.threat.norm.name])
    d = case.threat.norm.sample(case.threat.x0, best.distance.minimum(reach) / 2, case.noise)
    return (case.threat.x0 + d).clamp(0, 1)


def _goal_boundary(case: Case, x: Tensor, rivals: Tensor) -> PlanOf[tuple[Tensor, Tensor]]:  # noqa: ARG001
    """The boundary towards the goal that the best class but the label sets."""
    return _loss_and_gradient((yield engine.Gradient(x, engine.Margin(case.goal))))


def _rival_boundary(case: Case, x: Tensor, rivals: Tensor) -> PlanOf[tuple[Tensor, Tensor]]:
    """The boundary between the label and one rival (B, 1)."""
    return _loss_and_gradient(
        (yield engine.Gradient(x, engine.CustomLoss(_lead, case.goal.label, rivals[:, 0])))
    )


def _nearest_boundary(case: Case, x: Tensor, rivals: Tensor) -> PlanOf[tuple[Tensor, Tensor]]:
    """Of the boundaries between the label and its rivals (B, k), the nearest in the linearized model."""
    planes = yield from engine.query_hyperplanes(x, rivals, case.goal.label, DUAL[case.threat.norm.name])
    return planes.nearest_gap, planes.normal


def _lead(logits: Tensor, label: Tensor, rival: Tensor) -> Tensor:
    return (logits.gather(1, rival[:, None]) - logits.gather(1, label[:, None]))[:, 0]


def _loss_and_gradient(answer: Answer) -> tuple[Tensor, Tensor]:
    if answer.loss is None:
        raise TypeError("the answer has no loss: only a Gradient query gets one")
    return answer.loss, answer.gradient


def _final_search(case: Case, best: Nearest, margin0: Tensor) -> PlanOf[Nearest]:
    """False position on the segment from the original, whose margin is `margin0` (B,), to the point found."""
    rows = best.met.nonzero().flatten()
    if not len(rows):
        return best
    case, outside, low = case[rows], case.threat.x0[rows], margin0[rows]
    inside, high = best.x[rows], best.margin[rows]
    for _ in range(FINAL_STEPS):
        part = (low / (low - high).clamp_max(-TINY)).nan_to_num(0.5).clamp(0, 1)
        x = outside.lerp(inside, engine.column(part, inside))
        found = engine.Nearest.from_logits(case, x, (yield engine.Logits(x)).logits)
        best = best.put(rows, found)
        met = engine.column(found.met, x)
        outside, inside = outside.where(met, x), x.where(met, inside)
        low, high = low.where(found.met, found.margin), found.margin.where(found.met, high)
    return best


def project_to_hyperplane(norm: str, x: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The shortest move of `x` (B, C, H, W) within the box onto the hyperplane gap + <normal, move> = 0.

    `norm` is "linf", "l2" or "l1". Where no move reaches the hyperplane, the one that comes nearest to it;
    none where the normal is zero. Equations 6 and 7 of the paper.
    """
    scale = normal.flatten(1).abs().amax(1).clamp_min(TINY)
    slope = normal / engine.column(scale, normal)  # squares of small gradients would vanish in float32
    need = (gap / scale).clamp(-HUGE, HUGE)[:, None]
    side = -need.sign() * slope.flatten(1).sign()
    flat = x.flatten(1)
    max_change = (1 - flat).where(side > 0, flat)
    length = _PROJECTIONS[norm](slope.flatten(1).abs(), max_change, need.abs())
    return (side * length).view_as(x)


def _project_linf(slope: Tensor, max_change: Tensor, need: Tensor) -> Tensor:
    """L∞: all values by the same amount, or by their largest change."""
    return _solve_level(slope, slope.new_ones(()), max_change, need).minimum(max_change)


def _project_l2(slope: Tensor, max_change: Tensor, need: Tensor) -> Tensor:
    """L2: each value in proportion to its slope, or by its largest change."""
    return (_solve_level(slope, slope, max_change, need) * slope).minimum(max_change)


def _project_l1(slope: Tensor, max_change: Tensor, need: Tensor) -> Tensor:
    """L1: the steepest values as far as they can go, the last of them as far as it must."""
    steep, order = slope.sort(dim=1, descending=True)
    max_change = max_change.gather(1, order)
    gained = torch.nn.functional.pad((steep * max_change).cumsum(1)[:, :-1], (1, 0))
    length = ((need - gained).clamp_min(0) / steep.clamp_min(TINY)).minimum(max_change)
    return torch.zeros_like(length).scatter_(1, order, length)


def _solve_level(slope: Tensor, speed: Tensor, max_change: Tensor, need: Tensor) -> Tensor:
    """The t (B, 1) at which Σ slope·min(speed·t, max_change) reaches `need`.

    The sum is concave and piecewise linear in t, so Newton's method climbs from below and ends, exactly, as
    soon as no further value reaches its largest change.
    """
    level = need.new_zeros(need.shape)
    stuck = max_change <= 0
    while True:
        closed = (slope * max_change).where(stuck, 0).sum(1, keepdim=True)
        rate = (slope * speed).masked_fill(stuck, 0).sum(1, keepdim=True)
        level = ((need - closed) / rate.clamp_min(TINY)).clamp_max(HUGE).maximum(level)
        now = stuck | (speed * level >= max_change)
        if not bool((now != stuck).any()):
            return level
        stuck = now


_PROJECTIONS = {"linf": _project_linf, "l2": _project_l2, "l1": _project_l1}
