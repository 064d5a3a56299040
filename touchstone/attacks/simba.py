"""SimBA: one coordinate at a time, forth or back, kept where the score improves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from touchstone import engine
from touchstone.fields import Distance, Queries, Ratio
from touchstone.lazy import torch
from touchstone.methods import Attack, Cost, Info

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan


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

    def run(self, case: Case) -> Plan:
        """Query the image, then a step at a time; an image is done once its goal is met."""
        x0 = case.threat.x0
        waves = tuple(self._basis_vectors(side, x0) for side in x0.shape[2:])
        score = yield from engine.query_progress(case, x0)
        zeros = torch.zeros_like(case.goal.label)
        active = _SimBARows(
            case, x0, score, torch.arange(len(case)).to(zeros), self._direction_order(case), zeros
        )
        best = engine.Best.initial(x0)
        for _ in range(self.queries - 1):
            tried = active.propose(waves, self.step_size)
            active = active.accept_better(tried, (yield from engine.query_progress(active.case, tried)))
            if bool((active.score > 0).any()):
                best = best.put(active.row, engine.Best(active.x, active.score))
                active = active[active.score <= 0]
                if not len(active.row):
                    return engine.Found(case.as_file(best.x), best.score > 0)
        best = best.put(active.row, engine.Best(active.x, active.score))
        return engine.Found(case.as_file(best.x), best.score > 0)

    def _basis_vectors(self, side: int, like: Tensor) -> Tensor:
        """An orthonormal basis along one side, a direction in each row: the identity, or the DCT-II."""
        at = torch.arange(side, device=like.device, dtype=like.dtype)
        if self.basis == "pixel":
            return at.new_ones(side).diag()
        waves = (math.pi / side * (at + 0.5) * at[:, None]).cos() * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        return waves

    def _direction_order(self, case: Case) -> Tensor:
        """In which order each row tries the directions, (B, C·H·W)."""
        x = case.threat.x0
        random = case.noise.uniform(x)
        if self.basis == "dct":
            down, right = (math.ceil(self.low * side) for side in x.shape[2:])
            random[..., :down, :right] -= 1
        order: Tensor = random.flatten(1).argsort(1)
        return order


@dataclass(frozen=True)
class _SimBARows:
    """The rows that are not done, and which half-step each tries next: 2k is a step along its k-th direction,
    2k + 1 one against it.
    """

    case: Case
    x: Tensor
    score: Tensor
    row: Tensor  # (B,) its index in the whole batch
    order: Tensor  # (B, C·H·W)
    half: Tensor  # (B,)

    def __getitem__(self, index: Tensor) -> _SimBARows:
        return _SimBARows(
            self.case[index],
            self.x[index],
            self.score[index],
            self.row[index],
            self.order[index],
            self.half[index],
        )

    def propose(self, waves: tuple[Tensor, ...], size: float) -> Tensor:
        down, right = waves
        turn = self.half // 2 % self.order.shape[1]
        direction = self.order.gather(1, turn[:, None])[:, 0]
        channel, place = direction // (len(down) * len(right)), direction % (len(down) * len(right))
        length = size * (1.0 - 2 * (self.half % 2)).to(self.x.dtype)
        wave = down[place // len(right)][:, :, None] * right[place % len(right)][:, None, :]
        each = torch.arange(len(self.x), device=self.x.device)
        return self.x.index_put((each, channel), wave * length[:, None, None], accumulate=True).clamp_(0, 1)

    def accept_better(self, tried: Tensor, score: Tensor) -> _SimBARows:
        better = score > self.score
        return replace(
            self,
            x=torch.where(engine.column(better, tried), tried, self.x),
            score=torch.where(better, score, self.score),
            half=torch.where(better, self.half // 2 * 2 + 2, self.half + 1),
        )
