"""One pixel: differential evolution over places and colors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Integer, Ratio
from touchstone.lazy import torch
from touchstone.methods import Attack, Cost, Footprint, Info

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf

MEMBERS_AT_ONCE = 50
"""Members of the population that compete at a time."""
WORST_SCORE = -1e30
GENE_COPIES, MAX_GENES = 6, 5
"""Copies of the genes of a generation that are held at once, and the most genes of a pixel."""


class OnePixel(Attack):
    """The one-pixel attack: differential evolution looks for the place and the color of the pixels to
    change.

    A member of the population holds row, column and color of each pixel: at first places drawn uniformly
    and colors from N(128, 127²) in levels of 255. Its child is a + F·(b - c) of other members, with F 0.5,
    and takes its place where the score is better (section 3.2). In rand1bin `a` is a random member, in
    best1bin the best one.

    The L0 distance reported counts values: a pixel of a color image is up to three of them.

    Departures: best1bin is the default, which other implementations have, and not the paper's rand1bin; fifty
    members compete at a time, not the whole generation, and an image leaves after those in which its goal was
    met; what has to rise is the margin in untargeted attacks.
    """

    info = Info(
        name="onepixel",
        title="One-pixel attack",
        norms=("l0",),
        paper="Su, Vargas & Sakurai 2019: One Pixel Attack for Fooling Deep Neural Networks",
        url="https://arxiv.org/abs/1710.08864",
        access="scores",
    )

    queries: Count = Field(40_400, le=10_000_000, description="Queries for one image: 100 generations.")
    pixels: Count = Field(1, le=100, description="Pixels that may change, in all their channels.")
    population: Integer = Field(400, ge=4, le=10_000, description="Members of the population.")
    strategy: Literal["rand1bin", "best1bin"] = Field(
        "best1bin", description="Whether children start from a random member, or from the best."
    )
    scale: Ratio = Field(0.5, gt=0, le=2, description="F: the weight of the difference of two members.")
    crossover: Ratio = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of a child that is new; the rest is its parent's. 1: no crossover.",
    )

    def radius(self, channels: int) -> float:
        """All values of as many pixels."""
        return self.pixels * channels

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def rounds(self) -> int:
        """One for each part of the population that is queried at a time."""
        return -(-self.queries // min(MEMBERS_AT_ONCE, self.population)) + self.queries // self.population + 1

    def footprint(self) -> Footprint:
        """The members that compete as images, and the genes of all."""
        members = min(MEMBERS_AT_ONCE, self.population)
        genes = GENE_COPIES * self.population * self.pixels * MAX_GENES
        return replace(super().footprint(), images=24, many=members, each=6, parts=16, values=genes)

    def run(self, case: Case) -> Plan:
        """The first generation, and children while queries are left."""
        whole, best = case, engine.Best.initial(case.threat.x0)
        population = self._first_generation(case)
        left, at = self.queries, 0
        while left and len(population.row):
            members = slice(at, min(at + MEMBERS_AT_ONCE, at + left, population.size))
            tried = (
                population.genes[:, members]
                if left > self.queries - population.size
                else self._make_children(population, members)
            )
            population = population.select(members, tried, (yield from _query_scores(population.case, tried)))
            left -= members.stop - members.start
            at = members.stop % population.size
            done = (population.score > 0).any(1)
            if not left:
                done = torch.ones_like(done)
            if bool(done.any()):
                best = best.put(population.row[done], population[done].leaders())
                population = population[~done]
        return engine.Found(whole.as_file(best.x), best.score > 0)

    def _first_generation(self, case: Case) -> _Population:
        """Members with random places and colors, none of them queried."""
        size, channels = min(self.population, self.queries), case.threat.x0.shape[1]
        empty = case.threat.x0.new_empty((len(case), size, self.pixels, 2 + channels))
        genes = (0.5 + 0.5 * case.noise.normal(empty)).clamp_(0, 1)
        genes[..., :2] = case.noise.uniform(empty[..., :2])
        score = genes.new_full((len(case), size), WORST_SCORE)
        return _Population(case, torch.arange(len(case), device=genes.device), genes, score)

    def _make_children(self, population: _Population, members: slice) -> Tensor:
        """A child of each of the members, (B, n, pixels, 2 + C)."""
        parents = population.genes[:, members]
        chance = population.case.noise.uniform(parents.new_empty((*parents.shape[:2], 3)))
        a, b, c = _pick_three(chance, population.size)
        if self.strategy == "best1bin":
            a = population.score.argmax(1, keepdim=True).expand_as(a)
        child = population.pick(a) + self.scale * (population.pick(b) - population.pick(c))
        child = child.clamp_(0, 1)
        if self.crossover == 1:
            return child
        chance = population.case.noise.uniform(parents).flatten(2)
        new = (chance < self.crossover) | (chance == chance.amin(2, keepdim=True))  # one gene at least
        return torch.where(new.view_as(child), child, parents)


@dataclass(frozen=True)
class _Population:
    """The rows that are not done with their populations."""

    case: Case
    row: Tensor  # (B,) its index in the whole batch
    genes: Tensor  # (B, P, pixels, 2 + C) in [0,1]
    score: Tensor  # (B, P)

    def __getitem__(self, index: Tensor) -> _Population:
        return _Population(self.case[index], self.row[index], self.genes[index], self.score[index])

    @property
    def size(self) -> int:
        return self.genes.shape[1]

    def pick(self, index: Tensor) -> Tensor:
        """The members (B, n, pixels, 2 + C) at these places (B, n)."""
        rows = torch.arange(len(index), device=index.device)
        return self.genes[rows[:, None], index]

    def select(self, members: slice, tried: Tensor, score: Tensor) -> _Population:
        """The same with the children that are better than their parents."""
        better = score > self.score[:, members]
        genes, scores = self.genes.clone(), self.score.clone()
        genes[:, members] = torch.where(better[..., None, None], tried, genes[:, members])
        scores[:, members] = score.maximum(scores[:, members])
        return replace(self, genes=genes, score=scores)

    def leaders(self) -> engine.Best:
        """The best member of each row as an image."""
        score, index = self.score.max(1)
        return engine.Best(_paint(self.case.threat.x0, self.pick(index[:, None])[:, 0]), score)


def _pick_three(chance: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three different members each, from three numbers in [0,1)."""
    first = (chance[..., 0] * size).long()
    second = 1 + (chance[..., 1] * (size - 1)).long()
    third = 1 + (chance[..., 2] * (size - 2)).long()
    third = third + (third >= second)
    return first, (first + second) % size, (first + third) % size


def _paint(x: Tensor, genes: Tensor) -> Tensor:
    """The images (N, C, H, W) with the pixels of the genes (N, pixels, 2 + C) painted over them in order."""
    height, width = x.shape[2:]
    down = (genes[..., 0] * height).long().clamp_max(height - 1)
    right = (genes[..., 1] * width).long().clamp_max(width - 1)
    place, painted = down * width + right, x.flatten(2).clone()
    for pixel in range(genes.shape[1]):
        index = place[:, pixel, None, None].expand(-1, x.shape[1], 1)
        painted = painted.scatter_(2, index, genes[:, pixel, 2:, None])
    return painted.view_as(x)


def _query_scores(case: Case, genes: Tensor) -> PlanOf[Tensor]:
    """The progress of members (B, n, pixels, 2 + C) of each row, (B, n)."""
    every = torch.arange(len(case), device=genes.device).repeat_interleave(genes.shape[1])
    flat = genes.flatten(0, 1)

    def ask(piece: slice) -> PlanOf[Tensor]:
        repeated = case[every[piece]]
        return (yield from engine.query_progress(repeated, _paint(repeated.threat.x0, flat[piece])))

    score = yield from engine.ask_in_pieces(len(flat), case.threat.x0[0].numel(), ask)
    return score.view(genes.shape[:2])
