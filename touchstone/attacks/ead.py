"""EAD: the elastic-net attack, which shrinks small changes to zero and so finds sparse ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from touchstone import engine
from touchstone.attacks.cw import LOSS_CHECKS, STALLED_SHARE, confident_nearest, shortfall
from touchstone.engine.rows import Rows
from touchstone.fields import Count, EotSamples, Norm, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Answer, Case, Nearest, Plan

MIN_CHECK_INTERVAL = 100
"""The least steps between two checks of the loss: it rises while momentum builds up."""


class EAD(MinimalNorm):
    """The elastic-net attack: minimize c·max(κ - margin, 0) + ‖δ‖₂² + β‖δ‖₁ by shrinkage and thresholding.

    A gradient step on the smooth terms, then every change is drawn back by β, those smaller than β to none
    (equation 5); momentum k/(k+3) as in FISTA (Algorithm 1), the step falling with the square root of what
    is left. c is searched for per image, tenfold until a search succeeds, then by bisection. Of all successes
    the one of the smallest L1 distance is kept, or by the rule "EN" that of the smallest elastic net.

    Departures: successes are looked for among the points at which the gradient is taken, clipped to the box,
    so that a step takes one forward pass and not two; the L1 rule is the default, the norm being L1.
    """

    info = Info(
        name="ead",
        title="Elastic-net attack",
        norms=("l1",),
        paper="Chen et al. 2018: EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial Examples",
        url="https://arxiv.org/abs/1709.04114",
        budget="minimal",
    )

    norm: Norm = Field("l1", description="The norm in which the perturbation is measured.")
    steps: Count = Field(1_000, le=10_000, description="The most steps of one search.")
    binary_search_steps: Count = Field(9, le=20, description="Searches, each with another weight c.")
    beta: Ratio = Field(0.01, ge=0, le=1, description="β: what every change is drawn back by in a step.")
    decision_rule: Literal["L1", "EN"] = Field(
        "L1", description="The distance by which successes are ranked."
    )
    confidence: Ratio = Field(
        0.0, ge=0, le=1e6, description="κ: the margin, in logits, that a success needs."
    )
    step_size: Ratio = Field(
        0.01, gt=0, le=10, description="Length of the first step, as a part of the gradient."
    )
    initial_const: Ratio = Field(0.001, gt=0, le=1e6, description="The weight c of the first search.")
    abort_early: bool = Field(True, description="End a search once its loss has stopped falling.")
    eot: EotSamples = 1

    def cost(self) -> Cost:
        """A gradient for every step of every search."""
        steps = self.binary_search_steps * self.steps
        return Cost(forward=steps, backward=steps)

    def run(self, case: Case) -> Plan:
        """Searches, each from the image itself."""
        whole, best = case, engine.Nearest.initial(case.threat.x0)
        search = ElasticNetSearch.start(case.threat.x0)
        weight = BisectedWeight.start(case.threat.eps, self.initial_const)
        rows = torch.arange(len(case), device=case.device)
        while len(rows):
            answer = yield engine.Gradient(search.y, engine.Margin(case.goal))
            found = self._rank(case, confident_nearest(case, search.y, answer, self.confidence))
            best = best.put(rows, found)
            loss, grad = self._loss(case, search.y, answer, weight.c)
            ended = self._find_ended(search, loss)
            search = self._step(case, search, grad, loss, found.met)
            if bool(ended.any()):
                weight = weight.update(ended, search.met)
                search = search.restart(ended, case.threat.x0)
                open_ = weight.searches < self.binary_search_steps
                case, rows, search, weight = case[open_], rows[open_], search[open_], weight[open_]
        return best.to_found(whole)

    def _rank(self, case: Case, found: Nearest) -> Nearest:
        """By the decision rule."""
        if self.decision_rule == "L1":
            return found
        square = (found.x - case.threat.x0).flatten(1).square().sum(1)
        return replace(found, distance=self.beta * found.distance + square)

    def _loss(self, case: Case, y: Tensor, answer: Answer, c: Tensor) -> tuple[Tensor, Tensor]:
        """The smooth terms (B,) and their gradient."""
        d = y - case.threat.x0
        short, slope = shortfall(answer, self.confidence, c)
        return d.flatten(1).square().sum(1) + short, 2 * d + slope

    def _is_check(self, search: ElasticNetSearch) -> Tensor:
        return search.count % max(MIN_CHECK_INTERVAL, self.steps // LOSS_CHECKS) == 0

    def _find_ended(self, search: ElasticNetSearch, loss: Tensor) -> Tensor:
        last = search.count + 1 >= self.steps
        if not self.abort_early:
            return last
        return last | (self._is_check(search) & (loss.minimum(search.lowest) > STALLED_SHARE * search.before))

    def _step(
        self, case: Case, search: ElasticNetSearch, grad: Tensor, loss: Tensor, met: Tensor
    ) -> ElasticNetSearch:
        """A gradient step, a shrinkage, and a step ahead by the momentum."""
        size = self.step_size * (1 - search.count / self.steps).sqrt()
        d = search.y - engine.column(size, grad) * grad - case.threat.x0
        low, high = case.threat.perturbation_bounds
        shrunk = (d.sign() * (d.abs() - self.beta).clamp_min_(0)).clamp_(low, high)
        x = shrunk.add_(case.threat.x0).clamp_(0, 1)
        ahead = engine.column(search.count / (search.count + 3), x)
        y = (x + ahead * (x - search.x)).clamp_(0, 1)
        lowest = loss.minimum(search.lowest)
        before = torch.where(self._is_check(search), lowest, search.before)
        return ElasticNetSearch(x, y, search.count + 1, lowest, before, search.met | met)


@dataclass(frozen=True)
class ElasticNetSearch(Rows):
    """A running search."""

    x: Tensor  # (B, C, H, W) the sparse point
    y: Tensor  # (B, C, H, W) the point ahead of it, at which the gradient is taken
    count: Tensor  # (B,) steps made
    lowest: Tensor  # (B,) loss of this search
    before: Tensor  # (B,) the lowest loss at the last check
    met: Tensor  # (B,) whether this search has succeeded

    @classmethod
    def start(cls, x0: Tensor) -> ElasticNetSearch:
        """At the originals."""
        far = x0.new_full((len(x0),), torch.inf)
        return cls(x0, x0, torch.zeros_like(far), far, far, far < 0)

    def restart(self, ended: Tensor, x0: Tensor) -> ElasticNetSearch:
        """Rows of the mask `ended` begin at their originals."""
        wide = engine.column(ended, x0)
        return ElasticNetSearch(
            torch.where(wide, x0, self.x),
            torch.where(wide, x0, self.y),
            self.count.masked_fill(ended, 0),
            self.lowest.masked_fill(ended, torch.inf),
            self.before.masked_fill(ended, torch.inf),
            self.met & ~ended,
        )


@dataclass(frozen=True)
class BisectedWeight(Rows):
    """The weight of the margin against the distance, and between which two the best one lies."""

    c: Tensor  # (B,)
    low: Tensor  # (B,) the largest that was too small
    high: Tensor  # (B,) the smallest that was enough
    searches: Tensor  # (B,) searches done

    @classmethod
    def start(cls, like: Tensor, c: float) -> BisectedWeight:
        """Nothing known yet, for as many rows as `like` has."""
        zero = torch.zeros_like(like)
        return cls(zero + c, zero, zero + torch.inf, zero)

    def update(self, ended: Tensor, met: Tensor) -> BisectedWeight:
        """The next weight for rows of the mask `ended`, of whose searches those of `met` succeeded."""
        where = torch.where
        low = where(ended & ~met, self.low.maximum(self.c), self.low)
        high = where(ended & met, self.high.minimum(self.c), self.high)
        following = where(high.isinf(), 10 * self.c, (low + high) / 2)
        return BisectedWeight(where(ended, following, self.c), low, high, self.searches + ended)
