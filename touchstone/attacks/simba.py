"""SimBA: one coordinate at a time, forth or back, kept where the score improves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import HostNumbers, to_host
from touchstone.fields import Distance, Queries, Ratio
from touchstone.lazy import torch
from touchstone.methods import Attack, Cost, Footprint, Info

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf


class SimBA(Attack):
    """The simple black-box attack (algorithm 1): pick a direction of an orthonormal basis, try a step along
    it, else a step against it, and keep what brings the image nearer to its goal.

    After T steps kept, the L2 distance is at most √T·`step_size`; it is not bounded otherwise. Directions are
    single values of the image, or waves of the discrete cosine transform: those of low frequency first, in
    random order, then the others. After the last direction the first follows again.

    Departures: what has to rise is the margin in untargeted attacks, since the probability of a label that
    the model is sure of is one in floating point. With rounding, every query is of a file.
    """

    info = Info(
        name="simba",
        title="Simple black-box attack",
        norms=("l2",),
        paper="Guo et al. 2019: Simple Black-box Adversarial Attacks",
        url="https://arxiv.org/abs/1905.07121",
        access="scores",
        budget="minimal",
    )

    queries: Queries = 10_000
    step_size: Distance = Field(0.2, gt=0, description="Length of every step: the paper's ε.")
    basis: Literal["pixel", "dct"] = Field(
        "pixel", description="Directions: single values, or waves of the cosine transform."
    )
    low: Ratio = Field(
        1 / 8, gt=0, le=1, description="Share of the frequencies, along each side, that come first in dct."
    )

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def footprint(self) -> Footprint:
        """The order of the directions, and their basis."""
        return replace(super().footprint(), lines=8)

    def run(self, case: Case) -> Plan:
        """Query the image, then a step at a time; an image is done once its goal is met."""
        x0 = case.threat.x0
        score = yield from engine.query_progress(case, x0)
        order, first = self._direction_order(case), torch.zeros_like(case.goal.label)
        left = HostNumbers.full(len(case), self.queries - 1)
        start = CoordinateSearch(case, x0, score, order, first, left, self)
        ended = yield from engine.repeat(start.without_done())
        return engine.Found(case.as_file(ended.x), ended.score > 0)

    def _direction_order(self, case: Case) -> Tensor:
        """In which order each row tries the directions, (B, C·H·W)."""
        x = case.threat.x0
        random = case.noise.uniform(x)
        if self.basis == "dct":
            down, right = (math.ceil(self.low * side) for side in x.shape[2:])
            random[..., :down, :right] -= 1
        order: Tensor = random.flatten(1).argsort(1)
        return order


@lru_cache(maxsize=4)
def _basis_vectors(basis: str, side: int, device: Any, dtype: Any) -> Tensor:
    """An orthonormal basis along one side, a direction in each row: the identity, or the DCT-II."""
    at = torch.arange(side, device=device, dtype=dtype)
    if basis == "pixel":
        return at.new_ones(side).diag()
    waves = (math.pi / side * (at + 0.5) * at[:, None]).cos() * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves


@dataclass(frozen=True)
class CoordinateSearch(engine.Loop):
    """Rows that try one half-step at a time: the 2k-th goes along the k-th direction of a row's order, the
    one after against it.
    """

    case: Case
    x: Tensor
    score: Tensor  # (B,) the progress of `x` towards the goal
    order: Tensor  # (B, C·H·W)
    half: Tensor  # (B,) the half-step that comes next
    left: HostNumbers
    attack: SimBA

    def successes(self) -> tuple[Tensor, Tensor]:
        """The points as files, ranked by their distance."""
        far = -self.case.threat.distance(self.x)
        return self.case.as_file(self.x), far.masked_fill(self.score <= 0, -torch.inf)

    def step(self) -> PlanOf[CoordinateSearch]:
        """Try one half-step for each row."""
        tried = self._propose()
        score = yield from engine.query_progress(self.case, tried)
        better = score > self.score
        moved = replace(
            self,
            x=torch.where(engine.column(better, tried), tried, self.x),
            score=torch.where(better, score, self.score),
            half=torch.where(better, self.half // 2 * 2 + 2, self.half + 1),
            left=self.left.add(-1),
        )
        return moved.without_done()

    def without_done(self) -> CoordinateSearch:
        """The same with no queries left for rows that met their goal."""
        [met] = to_host(self.score > 0)
        return replace(self, left=self.left.where_not(met))

    def _propose(self) -> Tensor:
        basis, like = self.attack.basis, self.x
        down, right = (_basis_vectors(basis, side, like.device, like.dtype) for side in like.shape[2:])
        turn = self.half // 2 % self.order.shape[1]
        direction = self.order.gather(1, turn[:, None])[:, 0]
        channel, place = direction // (len(down) * len(right)), direction % (len(down) * len(right))
        length = self.attack.step_size * (1.0 - 2 * (self.half % 2)).to(self.x.dtype)
        wave = down[place // len(right)][:, :, None] * right[place % len(right)][:, None, :]
        each = torch.arange(len(self.x), device=self.x.device)
        return self.x.index_put((each, channel), wave * length[:, None, None], accumulate=True).clamp_(0, 1)
