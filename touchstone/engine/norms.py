"""What attacks need of a norm: four methods. A new norm is one more class here.

Perturbations `d` and gradients `g` have shape (B, C, H, W); sizes and radii have shape (B,). `low` and `high`
bound the perturbation so that the image stays in the box [0,1]: low = -x0, high = 1 - x0.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from touchstone.engine.noise import Noise
from touchstone.engine.rows import column

TINY = 1e-30
"""Keeps a division by the size of a zero gradient finite; the quotient is then zero."""


class Norm(Protocol):
    """A distance between images, and how to move within a ball of it."""

    name: str

    def size(self, d: Tensor) -> Tensor:
        """The norm of each row, (B,)."""
        ...

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:
        """The direction of size one in which a linear function with gradient `g` rises most; zero where
        `g` is.
        """
        ...

    def project(self, d: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """A nearby perturbation inside both the ball of radius `eps` and the box."""
        ...

    def sample(self, d: Tensor, eps: Tensor, noise: Noise) -> Tensor:
        """A perturbation of `d`'s shape drawn uniformly from the ball of radius `eps`."""
        ...


class Linf:
    """The largest change of any value."""

    name = "linf"

    def size(self, d: Tensor) -> Tensor:  # noqa: D102
        return d.flatten(1).abs().amax(1)

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:  # noqa: D102, ARG002
        return g.sign()

    def project(self, d: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: D102
        radius = column(eps, d)
        return d.clamp(-radius, radius).clamp_(low, high)

    def sample(self, d: Tensor, eps: Tensor, noise: Noise) -> Tensor:  # noqa: D102
        return column(eps, d) * (2 * noise.uniform(d) - 1)


class L2:
    """The Euclidean length of the change."""

    name = "l2"

    def size(self, d: Tensor) -> Tensor:  # noqa: D102
        return d.flatten(1).square().sum(1).sqrt()

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:  # noqa: D102, ARG002
        # Scaled first: squares of gradients below 1e-19 vanish in float32.
        g = g / column(Linf().size(g).clamp_min(TINY), g)
        return g / column(self.size(g).clamp_min(TINY), g)

    def project(self, d: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:  # noqa: D102
        # Clipping to the box only shortens: the bounds contain zero in every coordinate.
        shrink = (eps / self.size(d).clamp_min(TINY)).clamp_max(1)
        return (d * column(shrink, d)).clamp_(low, high)

    def sample(self, d: Tensor, eps: Tensor, noise: Noise) -> Tensor:  # noqa: D102
        direction = noise.normal(d)
        radius = eps * noise.uniform(eps) ** (1 / d[0].numel())
        return direction * column(radius / self.size(direction).clamp_min(TINY), d)


class L1:
    """The sum of all changes."""

    name = "l1"
    quantile = 0.99
    """Steps go to the coordinates of the largest percent of the gradient, as in SLIDE (Tramèr & Boneh
    2019, 1904.13000).
    """

    def size(self, d: Tensor) -> Tensor:  # noqa: D102
        return d.flatten(1).abs().sum(1)

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:
        """Equal steps in the coordinates of steepest ascent, except those that the box stops."""
        blocked = ((g > 0) & (x >= 1)) | ((g < 0) & (x <= 0))
        slope = g.masked_fill(blocked, 0).flatten(1)
        count = max(1, round((1 - self.quantile) * slope.shape[1]))
        top = slope.abs().topk(count, dim=1).indices
        direction = torch.zeros_like(slope).scatter_(1, top, slope.gather(1, top).sign())
        return (direction / direction.abs().sum(1, keepdim=True).clamp_min(1)).view_as(g)

    def project(self, d: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The exact Euclidean projection onto ball and box together (Croce & Hein 2021, 2103.01208,
        Proposition 2.1).

        The nearest point shrinks every coordinate by one λ >= 0 and clips it to the box. The size of that
        point falls piecewise linearly in λ, with a kink wherever a coordinate leaves the box's bound or
        reaches zero; between the two kinks that enclose `eps` the λ is solved for exactly.
        """
        inside = d.clamp(low, high)
        if bool((self.size(inside) <= eps).all()):
            return inside
        length = d.flatten(1).double().abs()
        max_change = torch.where(d > 0, high, -low).flatten(1).double().minimum(length)
        kinks, order = torch.cat([length, length - max_change], 1).sort(dim=1, descending=True)
        ones = torch.ones_like(length)
        slope = (
            torch.cat([ones, -ones], 1).gather(1, order).cumsum(1)
        )  # coordinates that grow as λ falls below a kink
        drop = kinks[:, :-1] - kinks[:, 1:]
        size = torch.nn.functional.pad(
            (slope[:, :-1] * drop).cumsum(1), (1, 0)
        )  # size of the point at each kink
        radius = eps.double()[:, None]
        at = (torch.searchsorted(size, radius, right=True) - 1).clamp_min(0)
        rest = (radius - size.gather(1, at)) / slope.gather(1, at).clamp_min(1)
        shrink = (kinks.gather(1, at) - rest).clamp_min(0)
        nearest = (length - shrink).clamp_min(0).minimum(max_change).to(d.dtype)
        nearest = torch.where(self.size(inside)[:, None] <= eps[:, None], inside.flatten(1).abs(), nearest)
        return nearest.view_as(d).copysign(d).clamp(low, high)

    def sample(self, d: Tensor, eps: Tensor, noise: Noise) -> Tensor:
        """Uniform in the ball: exponentials over their sum with one more (Calafiore, Dabbene & Tempo
        1998), random signs.
        """
        width = noise.exponential(d)
        total = width.flatten(1).sum(1) + noise.exponential(eps)
        signs = (noise.uniform(d) - 0.5).sign()
        return signs * width * column(eps / total, d)


class L0:
    """The number of changed values: one of a pixel's channels is a value."""

    name = "l0"

    def size(self, d: Tensor) -> Tensor:  # noqa: D102
        return (d != 0).flatten(1).sum(1).to(d.dtype)

    def steepest(self, g: Tensor, x: Tensor) -> Tensor:
        """The one coordinate of steepest ascent that the box does not stop."""
        blocked = ((g > 0) & (x >= 1)) | ((g < 0) & (x <= 0))
        slope = g.masked_fill(blocked, 0).flatten(1)
        top = slope.abs().argmax(1, keepdim=True)
        return torch.zeros_like(slope).scatter_(1, top, slope.gather(1, top).sign()).view_as(g)

    def project(self, d: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The `eps` largest changes, clipped to the box; the others are undone."""
        inside = d.clamp(low, high).flatten(1)
        order = inside.abs().argsort(1, descending=True)
        rank = torch.arange(inside.shape[1], device=d.device)
        beyond = torch.zeros_like(inside, dtype=torch.bool).scatter_(1, order, rank + 1 > eps[:, None])
        return inside.masked_fill(beyond, 0).view_as(d)

    def sample(self, d: Tensor, eps: Tensor, noise: Noise) -> Tensor:
        """Values drawn uniformly in [-1, 1] at `eps` random positions."""
        rank = noise.uniform(d).flatten(1).argsort(1).argsort(1)
        return (2 * noise.uniform(d) - 1) * (rank + 1 <= eps[:, None]).view_as(d)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0())}
