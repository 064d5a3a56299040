"""Whether the gradient of a network is that of its answers, and finite."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.models.random_streams import keyed_rows

DIRECTIONS = 8
STEP_SIZES = (2.5e-4, 1e-3, 4e-3)
"""Rounding makes differences of short steps inaccurate, and kinks of the network those of long ones."""

GRADIENT_TOLERANCE = 0.05
"""The largest error of a gradient that agrees; only beyond it longer steps are tried, as each costs time."""

TINY = 1e-30


@dataclass(frozen=True)
class MeasuredGradient:
    """The gradient at x, both (1, C, H, W), of the answers weighted at random by `weights` (1, K)."""

    x: Tensor
    values: Tensor
    weights: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether it has neither NaN nor infinity."""
        return bool(torch.isfinite(self.values).all())


def gradient_error(oracle: TorchOracle, gradient: MeasuredGradient) -> float:
    """How far a gradient is from central differences of the answers.

    The median over random directions, as a share of the gradient's length, so that a few kinks of the network
    between the points do not count; with the first step size whose error is tolerated, else with that of the
    smallest error; infinite where no difference is finite.
    """
    values = gradient.values.double()
    draw = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (DIRECTIONS, *values.shape[1:]), generator=draw) * 2.0 - 1
    predicted = (values * signs).flatten(1).sum(1)
    length = float(values.norm())
    errors = []
    for size in STEP_SIZES:
        found = _central_differences(oracle, gradient, signs, size)
        scale = max(length, float(found.abs().max()), TINY)
        errors.append(float((found - predicted).abs().median()) / scale)
        if errors[-1] <= GRADIENT_TOLERANCE:
            break
    return min(filter(math.isfinite, errors), default=math.inf)


def measure_gradient(oracle: TorchOracle, x: Tensor) -> MeasuredGradient:
    """The gradient at x (1, C, H, W)."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = _answer(oracle, leaf)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        [values] = torch.autograd.grad((logits * weights).sum(), leaf)
    return MeasuredGradient(x, values, weights)


def _answer(oracle: TorchOracle, x: Tensor) -> Tensor:
    """Logits (1, K); a network that answers at random draws the same each time."""
    with keyed_rows([(0,)]):
        logits: Tensor = oracle.module(oracle.preprocessing.apply(x))
        return logits


def _central_differences(
    oracle: TorchOracle, gradient: MeasuredGradient, signs: Tensor, size: float
) -> Tensor:
    """Change of the weighted answers along each direction, per unit length, (D,)."""
    ends = []
    with torch.no_grad():
        for side in (size, -size):
            logits = torch.cat([_answer(oracle, gradient.x + side * sign[None]) for sign in signs])
            ends.append((logits.double() * gradient.weights).sum(1))
    return (ends[0] - ends[1]) / (2 * size)
