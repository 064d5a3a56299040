"""NES: projected gradient steps along a gradient estimated from scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Distance, Queries, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, E, FixedBudget, Footprint, Info, StepSize

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf


class NES(StepSize, FixedBudget):
    """Natural evolution strategies: query Gaussian neighbors in opposite pairs, and step along the mean
    of their directions weighted by their scores (algorithm 1), projected into the ball.

    Every step queries `samples` neighbors and the file at its end. The neighbors are not files:
    σ is far below what eight bits can hold; the box cuts them off. An image that resists takes
    exactly `queries` queries: the last estimate takes fewer pairs.

    Departures: untargeted attacks raise the margin, since the probability of a label that the model is sure
    of is one in floating point; steps have one size, without the authors' momentum and annealing.
    """

    info = Info(
        name="nes",
        title="Natural evolution strategies",
        norms=("linf", "l2"),
        paper="Ilyas et al. 2018: Black-box Adversarial Attacks with Limited Queries and Information",
        url="https://arxiv.org/abs/1804.08598",
        access="scores",
    )

    queries: Queries = 10_000
    samples: Count = Field(50, le=10_000, multiple_of=2, description="Neighbors that an estimate takes.")
    sigma: Ratio = Field(0.001, gt=0, le=1, description="Standard deviation of the neighbors' distance.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means eps/5.", examples=["2/255"]
    )

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def rounds(self) -> int:
        """Two per step: the estimate and the query of its end."""
        return 2 * -(-self.queries // (self.samples + 1))

    def default_step_size(self, eps: E) -> E:
        """A fifth of the radius."""
        return eps / 5

    def footprint(self) -> Footprint:
        """The neighbors of a piece with their directions."""
        return replace(super().footprint(), images=26, many=self.samples, each=4)

    def run(self, case: Case) -> Plan:
        """Estimate, step, query; an image is done once its goal is met."""
        whole = case = engine.round_eps_down(case)
        best, rows = engine.Best.initial(case.threat.x0), torch.arange(len(case), device=case.device)
        x, left, target = case.threat.x0, self.queries, engine.done_progress(case)
        grad = torch.zeros_like(x)
        while left:
            pairs = min(self.samples, left - 1) // 2
            if pairs:  # a single query that is left goes into one more step along the last estimate
                grad = yield from self._estimate_gradient(case, x, pairs)
            left -= 2 * pairs + 1
            x = case.threat.step(x, grad, self.resolve_step_size(case.threat.eps))
            score = yield from engine.query_progress(case, x)
            best = best.put(rows, engine.Best(x, score))
            if self.early_stop and bool((score >= target).any()):
                keep = score < target
                if not bool(keep.any()):
                    break
                case, x, rows, grad = case[keep], x[keep], rows[keep], grad[keep]
        return engine.Found(whole.as_file(best.x), best.score > 0)

    def _estimate_gradient(self, case: Case, x: Tensor, pairs: int) -> PlanOf[Tensor]:
        """The gradient of the progress at `x` from `pairs` opposite pairs of neighbors."""
        draw, total = case.noise.normal_parts(x, pairs), engine.RowSum(pairs)
        for piece in engine.cut(pairs, 2 * x.numel()):
            u = draw(piece)  # (B, n, …)
            there = torch.stack([u, -u], 1).mul_(self.sigma).add_(x[:, None, None])  # (B, 2, n, …)
            answer = yield engine.Logits(there.clamp_(0, 1).flatten(0, 2))
            every = torch.arange(len(x), device=x.device).repeat_interleave(2 * u.shape[1])
            score = engine.objective(case.goal[every], answer.logits).view(len(x), 2, -1)
            weight = (score[:, 0] - score[:, 1]) / (2 * self.sigma * pairs)
            weight = weight.nan_to_num(0, 0, 0)  # of neighbors without finite logits nothing is known
            total.add(u.flatten(2) * weight[..., None])
        return total.total().view_as(x)
