"""Parts of attacks that see decisions alone: a start that meets the goal, a point on the boundary between it
and the original, and an estimate of the boundary's normal there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.engine.noise import Noise
from touchstone.engine.pieces import NEIGHBOR_BYTES, rows_of_piece
from touchstone.engine.queries import PlanOf
from touchstone.engine.rows import column
from touchstone.engine.search.nearest import Nearest
from touchstone.engine.threat import Case, Threat

COARSENESS = (None, 1, 2, 4, 8)
"""Cells along each side of the random images, in turn; None is a value for each pixel. Models predict nearly
the same class for all images of one coarseness.
"""
FILE_STEPS, FLOAT_STEPS = 10, 20
"""Halvings after which files, or numbers of 32 bits, no longer differ."""
MIN_PROBE = {"l2": 0.5 / 255, "linf": 2 / 255}
"""The least root mean square change of a neighbor that is a file. In L∞, where all values stand at one
distance, less would be rounded away for all of them.
"""
MIN_PROBE_FLOAT = 1e-5


def find_start(case: Case, max_starts: int) -> PlanOf[tuple[Nearest, Tensor]]:
    """For every row the first of at most `max_starts` random images that meets its goal, and how many were
    queried, (B,).
    """
    best = Nearest.initial(case.threat.x0)
    rows = torch.arange(len(case), device=case.device)
    asked = torch.zeros_like(rows)
    for attempt in range(max_starts):
        open_ = case[rows]
        tried = open_.as_file(
            _random_images(open_.threat.x0, open_.noise, COARSENESS[attempt % len(COARSENESS)])
        )
        met = open_.goal.is_met((yield open_.query(tried)).logits)
        asked[rows] += 1
        best = best.put(rows[met], record_success(open_[met], tried[met]))
        rows = rows[~met]
        if not len(rows):
            break
    return best, asked


def _random_images(like: Tensor, noise: Noise, cells: int | None) -> Tensor:
    height, width = like.shape[2:]
    if cells is None:
        return noise.uniform(like)
    grid = like.new_empty((*like.shape[:2], min(cells, height), min(cells, width)))
    return functional.interpolate(noise.uniform(grid), (height, width))


def shorten_perturbation(threat: Threat, x: Tensor, part: Tensor) -> Tensor:
    """The points at a `part` (B,) of their distance: along a straight line or, in L∞, clipped to a ball."""
    d = x - threat.x0
    if threat.norm.name == "linf":
        radius = column(part * threat.norm.size(d), d)
        return threat.x0 + d.maximum(-radius).minimum(radius)
    return (threat.x0 + column(part, d) * d).clamp(0, 1)


def bisection_steps(case: Case, threshold: float) -> int:
    """How many halvings leave less than a `threshold` of the segment, or no difference that counts."""
    wanted = (1 / torch.tensor(threshold).double()).log2().ceil().clamp_min(1)
    return min(int(wanted), FILE_STEPS if case.quantize else FLOAT_STEPS)


def bisect_boundary(case: Case, far: Tensor, steps: Tensor) -> PlanOf[Tensor]:
    """Bisect the segment from the original to `far`, which meets the goal: the nearest point found on it that
    does, by `steps` (B,) queries.
    """
    low, high = torch.zeros_like(case.threat.eps), torch.ones_like(case.threat.eps)
    for step in range(int(steps.max()) if len(steps) else 0):
        rows = (steps > step).nonzero().flatten()
        open_ = case[rows]
        middle = (low[rows] + high[rows]) / 2
        answer = yield open_.query(shorten_perturbation(open_.threat, far[rows], middle))
        met = open_.goal.is_met(answer.logits)
        low = low.index_copy(0, rows, torch.where(met, low[rows], middle))
        high = high.index_copy(0, rows, torch.where(met, middle, high[rows]))
    return torch.where(column(high == 1, far), far, shorten_perturbation(case.threat, far, high))


def record_success(case: Case, x: Tensor) -> Nearest:
    """The record of points whose files are known to meet the goal."""
    files = case.as_file(x)
    return Nearest(files, case.threat.distance(files), torch.zeros_like(case.threat.eps))


def probe_distance(case: Case, x: Tensor) -> Tensor:
    """The distance from each point to its neighbors, (B,): a d-th of the point's own, with a lower bound."""
    d = x[0].numel()
    least = MIN_PROBE[case.threat.norm.name] if case.quantize else MIN_PROBE_FLOAT
    return (case.threat.distance(x) / d).clamp_min(least * math.sqrt(d))


def estimate_unit_normal(case: Case, x: Tensor, count: Tensor, radius: Tensor) -> PlanOf[Tensor]:
    """The direction in which the goal is met, of size one in the norm; see `estimate_normal`."""
    towards = yield from estimate_normal(case, x, count, radius)
    return case.threat.norm.steepest(towards, x).to(x.dtype)


def _identity(u: Tensor) -> Tensor:
    return u


def estimate_normal(
    case: Case, x: Tensor, count: Tensor, radius: Tensor, project: Callable[[Tensor], Tensor] = _identity
) -> PlanOf[Tensor]:
    """The boundary's normal, towards the side where the goal is met, from `count` (B,) random neighbors at a
    distance of `radius` (B,): the sum of the directions to those that meet the goal, less those to the
    others, with the mean as baseline; in float64. `project` projects onto the subspace that neighbors are
    drawn from.
    """
    # In float64, so that the order in which rows are added up does not change any row's result.
    towards, every = torch.zeros_like(x).double(), torch.zeros_like(x).double()
    balance = torch.zeros_like(radius).double()
    share = rows_of_piece(x[0].numel(), NEIGHBOR_BYTES)
    for start in range(0, int(count.max()), share):
        asked = torch.arange(start, min(start + share, int(count.max())), device=x.device) < count[:, None]
        row, place = asked.nonzero().unbind(1)
        neighbors = _sample_neighbors(case, x, radius, asked.shape[1], project)[row, place]
        files = case[row].as_file(neighbors)
        met = case.goal[row].is_met((yield case[row].query(files)).logits)
        sign = 2 * met.double() - 1
        u = (files - x[row]).double() / column(radius[row], x)
        towards = towards.index_add(0, row, u * column(sign, x))
        every = every.index_add(0, row, u)
        balance = balance.index_add(0, row, sign)
    mean = balance / count
    mean = mean.masked_fill(mean.abs() == 1, 0)  # where all agree, their mean is no baseline
    return project(towards - column(mean, x) * every)


def _sample_neighbors(
    case: Case, x: Tensor, radius: Tensor, count: int, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """Random neighbors of each point inside the box, (B, count, C, H, W)."""
    like = x[:, None].expand(-1, count, *x.shape[1:])
    even = case.threat.norm.name == "linf"
    u = project(2 * case.noise.uniform(like) - 1 if even else case.noise.normal(like))
    length = radius[:, None] / u.flatten(2).double().square().sum(2).sqrt()
    around: Tensor = like + u * length[..., None, None, None].to(u.dtype)
    return around.clamp(0, 1)
