"""Square: random search over square windows, with scores alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.engine.rows import RowIndex
from touchstone.fields import Count, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, FixedBudget, Info

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from touchstone.engine import Case, Plan, Threat

HALVED_AFTER = (10, 50, 200, 500, 1_000, 2_000, 4_000, 6_000, 8_000)
"""Ten-thousandths of the budget after which the area of the windows is halved."""
DRAWS = 7
TINY = 1e-30
OVERSHOOT, OVERSHOOT_SHARE = 2.0, 0.25
"""In L1, a square gets so many times its share of the radius before all is projected, in this share of the
proposals. Doing so in all proposals would fail on networks that sparse changes do not fool.
"""
FIRST_OVERSHOOT = 3.0
"""In L1, the first perturbation is so many times as long as the radius before it is projected."""


class Square(FixedBudget):
    """The Square attack: change one random square, and keep the change where it brings the image nearer to
    its goal.

    L∞ (algorithm 2): starts from vertical stripes; every channel of a square goes to one end of the ball.
    L2 (algorithm 3): starts from tiles of pyramids; a square gets a new pyramid and the budget of another
    square. L1 (Croce & Hein 2021, 2103.01208): as L2, with steeper pyramids; what is longer than the radius
    is projected exactly on ball and box together, which leaves it sparser. The squares shrink on the paper's
    schedule, scaled to `queries`. What rises is the margin, in targeted attacks the target's log-probability
    (section 5).

    Departures: every image has windows and pyramids of its own, and windows reach the last row and column,
    which the authors' code leaves out. In L1 a quarter of the proposals is longer than the radius, whatever
    the number of channels. With rounding, every query is of a file.
    """

    info = Info(
        name="square",
        title="Square attack",
        norms=("linf", "l2", "l1"),
        paper="Andriushchenko et al. 2020: Square Attack: a query-efficient black-box adversarial attack "
        "via random search",
        url="https://arxiv.org/abs/1912.00049",
        access="scores",
    )

    queries: Count = Field(5_000, le=1_000_000, description="Queries for one image.")
    p_init: Ratio = Field(0.8, gt=0, le=1, description="Share of the image that the first squares cover.")

    def cost(self) -> Cost:
        """The query budget."""
        return Cost(forward=self.queries, backward=0)

    def run(self, case: Case) -> Plan:
        """A random search over squares."""
        case = engine.round_eps_down(case)
        start, propose = (
            (_stripes, self._recolor_squares)
            if case.threat.norm.name == "linf"
            else (_tiles, self._reshape_squares)
        )
        return (
            yield from engine.random_search(
                case,
                start(case),
                propose,
                queries=self.queries,
                draws=DRAWS,
                early_stop=self.early_stop,
            )
        )

    def _recolor_squares(self, threat: Threat, x: Tensor, steps: Sequence[int], numbers: Tensor) -> Tensor:
        """Squares in new colors, as large as is due at the steps of the rows."""
        return _propose_by_side(_recolor_square, threat, x, [self._side(x, step) for step in steps], numbers)

    def _reshape_squares(self, threat: Threat, x: Tensor, steps: Sequence[int], numbers: Tensor) -> Tensor:
        """Squares in new shapes, as large as is due at the steps of the rows."""
        return _propose_by_side(_reshape_square, threat, x, [self._side(x, step) for step in steps], numbers)

    def _side(self, x: Tensor, step: int) -> float:
        """The side of a square with the share of the image that is due at a step."""
        passed = step * 10_000 // self.queries
        halvings = sum(passed > after for after in HALVED_AFTER)
        return math.sqrt(self.p_init / 2**halvings * x[0, 0].numel())


def _propose_by_side(
    propose: Callable[[Threat, Tensor, float, Tensor], Tensor],
    threat: Threat,
    x: Tensor,
    sides: Sequence[float],
    numbers: Tensor,
) -> Tensor:
    """Proposals for rows whose squares have different sides, of one side at a time."""
    if len(set(sides)) == 1:
        return propose(threat, x, sides[0], numbers)
    proposed = x
    for side in sorted(set(sides)):
        index = RowIndex.where(one == side for one in sides)
        rows = index.on(x.device)
        proposed = proposed.index_copy(0, rows, propose(threat[index], x[rows], side, numbers[rows]))
    return proposed


def _recolor_square(threat: Threat, x: Tensor, due: float, numbers: Tensor) -> Tensor:
    """A square whose channels each go to one end of the L∞ ball, never to where they all are already."""
    side = min(max(round(due), 1), *x.shape[2:])
    window = _window(x, side, numbers[:, 0], numbers[:, 1])
    here, original = x.flatten(2).gather(2, window), threat.x0.flatten(2).gather(2, window)
    signs = _random_signs(numbers[:, 2], x.shape[1])
    same = (_ball_end(original, signs, threat.eps) == here).flatten(1).all(1)
    signs = torch.where(same[:, None], signs * _changed_signs(numbers[:, 3], x.shape[1]), signs)
    return _put_values(x, window, _ball_end(original, signs, threat.eps))


def _reshape_square(threat: Threat, x: Tensor, due: float, numbers: Tensor) -> Tensor:
    """A square with one more pyramid, within what a second square and clipping leave of the radius."""
    side = min(max(round(due), 3) // 2 * 2 + 1, *x.shape[2:])
    window = _window(x, side, numbers[:, 0], numbers[:, 1])
    donor = _window(x, side, numbers[:, 2], numbers[:, 3])
    d, p = x - threat.x0, _power(threat)
    here = d.flatten(2).gather(2, window)
    emptied = _put_values(_put_values(d, window, 0 * here), donor, 0 * here)
    unused = (threat.eps**p - _mass(d, 1, p)).clamp_min(0) / x.shape[1]
    freed = _mass(d, 2, p) - _mass(emptied, 2, p)  # (B, C)
    pyramids = _pyramids(side, numbers[:, 4], p).flatten(1)[:, None]  # (B, 1, side²)
    new = pyramids * _random_signs(numbers[:, 5], x.shape[1])[..., None] + _normalize(here, 2, p)
    new = _normalize(new, 2, p) * (unused[:, None] + freed)[..., None] ** (1 / p)
    spilled = torch.where((numbers[:, 6] < OVERSHOOT_SHARE) & (p == 1), OVERSHOOT, 1.0)
    return _fit_to_ball(threat, _put_values(emptied, window, new * spilled[:, None, None]))


def _window(x: Tensor, side: int, down: Tensor, right: Tensor) -> Tensor:
    """Where in the flattened channels the pixels of each row's square are, (B, C, side²); `down`, `right`
    (B,) in [0,1).
    """
    height, width = x.shape[2:]
    steps = torch.arange(side, device=x.device)
    rows = (down * (height - side + 1)).long()[:, None] + steps
    columns = (right * (width - side + 1)).long()[:, None] + steps
    pixels = rows[:, :, None] * width + columns[:, None, :]
    return pixels.flatten(1)[:, None].expand(-1, x.shape[1], -1)


def _put_values(x: Tensor, window: Tensor, values: Tensor) -> Tensor:
    return x.flatten(2).scatter(2, window, values).view_as(x)


def _lowest_bits(numbers: Tensor, count: int) -> Tensor:
    """The lowest bits of whole numbers (B,), (B, count)."""
    return numbers.long()[:, None] >> torch.arange(count, device=numbers.device) & 1


def _random_signs(numbers: Tensor, count: int) -> Tensor:
    """Independent signs, (B, count), from one number in [0,1) each."""
    return 1.0 - 2 * _lowest_bits(numbers * 2**count, count)


def _changed_signs(numbers: Tensor, count: int) -> Tensor:
    """Likewise, but never all positive."""
    return 1.0 - 2 * _lowest_bits(1 + numbers * (2**count - 1), count)


def _ball_end(original: Tensor, signs: Tensor, eps: Tensor) -> Tensor:
    """The end of the ball and the box on the signs' side: original (B, C, n), signs (B, C)."""
    return (original + (signs * eps[:, None])[..., None]).clamp_(0, 1)


def _stripes(case: Case) -> Tensor:
    """Vertical stripes a pixel wide, of one random end of the ball for each channel."""
    x = case.threat.x0
    signs = (case.noise.uniform(x[:, :, :1]) < 0.5).to(x.dtype) * 2 - 1
    return (x + signs * case.threat.eps.view(-1, 1, 1, 1)).clamp_(0, 1)


def _power(threat: Threat) -> int:
    """The p of the norm Lp: 1 or 2."""
    return 1 if threat.norm.name == "l1" else 2


def _mass(d: Tensor, start: int, p: int) -> Tensor:
    """The p-th power of the length over the dimensions from `start` on."""
    mass: Tensor = d.flatten(start).abs().pow(p).sum(start)
    return mass


def _normalize(d: Tensor, start: int, p: int) -> Tensor:
    """Of length one in Lp over the dimensions from `start` on; zero stays zero."""
    flat = d.flatten(start)
    unit: Tensor = flat / flat.norm(p, dim=start, keepdim=True).clamp_min(TINY)
    return unit.view_as(d)


def _pyramids(side: int, turned: Tensor, p: int) -> Tensor:
    """Two pyramids side by side, one upwards, one downwards, of length one in Lp (section 3.3); each row's is
    turned where its number in [0,1) is above one half; (B, side, side).
    """
    if side == 1:
        return torch.ones_like(turned)[:, None, None]
    upper = _pyramid(side // 2, side, turned, p)
    both = torch.cat([upper, -_pyramid(side - side // 2, side, turned, p)]) / 2 ** (1 / p)
    return torch.where((turned > 0.5)[:, None, None], both.T, both)


def _pyramid(height: int, width: int, like: Tensor, p: int) -> Tensor:
    """Rings around the middle, each 1/k² higher than the one around it, in L1 1/k⁴; of length one in Lp."""
    down = (torch.arange(height, device=like.device) - height // 2).abs()
    right = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = down[:, None].maximum(right)
    rises = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype) ** (-4 / p)
    levels = rises.flip(0).cumsum(0).flip(0)  # (k,) a pixel in ring k is under all rises from the k-th on
    pyramid: Tensor = levels[ring] / levels[ring].norm(p)
    return pyramid


def _tiles(case: Case) -> Tensor:
    """A grid of pyramids, five along the shorter side, with a random sign for each tile and channel."""
    x, p = case.threat.x0, _power(case.threat)
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    down, right = height // side, width // side
    signs = 1 - 2 * (case.noise.uniform(x[..., :down, :right]) > 0.5).to(x.dtype)
    turned = case.noise.uniform(x[:, 0, :down, :right]).flatten()
    tiles = _pyramids(side, turned, p).view(len(x), 1, down, right, side, side) * signs[..., None, None]
    grid = tiles.transpose(3, 4).reshape(len(x), channels, down * side, right * side)
    d = x.new_zeros(x.shape)
    top, left = (height - down * side) // 2, (width - right * side) // 2
    d[..., top : top + down * side, left : left + right * side] = grid
    return _fit_to_ball(
        case.threat, FIRST_OVERSHOOT * engine.column(case.threat.eps, d) * _normalize(d, 1, p)
    )


def _fit_to_ball(threat: Threat, d: Tensor) -> Tensor:
    """The images with these perturbations brought to the radius: in L2 scaled to it and clipped to the box;
    in L1 projected onto ball and box.
    """
    if _power(threat) == 1:
        return threat.project(threat.x0 + d)
    return (threat.x0 + _normalize(d, 1, 2) * engine.column(threat.eps, d)).clamp_(0, 1)
