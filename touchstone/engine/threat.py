"""What the adversary may do, and the case that an attack is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from touchstone.engine.goals import Goal
from touchstone.engine.noise import Noise
from touchstone.engine.norms import Norm
from touchstone.engine.quantization import is_within, smallest_step, snap
from touchstone.engine.queries import FileLogits, Logits
from touchstone.engine.rows import Rows, column


def softmax(logits: Tensor) -> Tensor:
    """The confidences (B, K) of a model that ends in logits."""
    return logits.double().softmax(1)


@dataclass(frozen=True)
class Threat(Rows):
    """Images within `eps` of `x0` in a norm, and inside the box [0,1]."""

    x0: Tensor  # (B, C, H, W)
    eps: Tensor  # (B,)
    norm: Norm

    @cached_property
    def perturbation_bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest perturbation that the box allows in every coordinate."""
        return -self.x0, 1 - self.x0

    @cached_property
    def max_distance(self) -> Tensor:
        """Distance of each row's original to the farthest corner of the box, (B,)."""
        return self.norm.size(self.x0.maximum(1 - self.x0))

    def distance(self, x: Tensor) -> Tensor:
        """Distance of each row from its original, (B,)."""
        return self.norm.size(x - self.x0)

    def project(self, x: Tensor) -> Tensor:
        """The images projected into ball and box."""
        d = self.norm.project(x - self.x0, self.eps, *self.perturbation_bounds)
        return d.add_(self.x0).clamp_(0, 1)  # the sum may round out of the box

    def step(self, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """A step of `distance` (B,) in the norm's steepest direction, projected."""
        return self.project(x + column(size, x) * self.norm.steepest(grad, x))

    def random_start(self, noise: Noise) -> Tensor:
        """A point drawn uniformly from the ball, then clipped to the box."""
        return self.project(self.x0 + self.norm.sample(self.x0, self.eps, noise))


@dataclass(frozen=True)
class Case(Rows):
    """What an attack is given: per row an original with its threat, a goal and a noise stream.

    With `quantize`, success counts only if it survives rounding to 8 bits. With a `min_confidence`, an attack
    that stops early does so only where the goal is met with that confidence.
    """

    threat: Threat
    goal: Goal
    noise: Noise
    quantize: bool = True
    surrogates: tuple[Any, ...] = ()  # oracles of other models, for transfer attacks
    min_confidence: float | None = None
    confidences: Callable[[Tensor], Tensor] = softmax  # of logits (B, K), as the model shows them

    def is_confident(self, logits: Tensor) -> Tensor:
        """Which rows have at least the confidence that was asked for, (B,) bool; none where none was."""
        if self.min_confidence is None:
            return torch.zeros_like(self.goal.targeted)
        confidence = self.confidences(logits).gather(1, self.goal.likeliest(logits)[:, None])[:, 0]
        return confidence >= self.min_confidence

    @property
    def below_one_level(self) -> Tensor:
        """Which rows are judged as files and have no file but the original within their radius, (B,) bool."""
        least = torch.full_like(self.threat.eps, smallest_step(self.threat.x0, self.threat.norm)).double()
        return ~is_within(least, self.threat.eps) & self.quantize

    def snap(self, x: Tensor) -> Tensor:
        """The images as an 8-bit file can hold them, still within the threat; see `quantization.snap`."""
        return snap(x, self.threat.x0, self.threat.eps, self.threat.norm)

    def as_file(self, x: Tensor) -> Tensor:
        """The images as they would be submitted: as a file holds them, or as they are without `quantize`."""
        return self.snap(x) if self.quantize else x

    def query(self, x: Tensor) -> Logits:
        """The query for the logits of `as_file(x)`."""
        return FileLogits(self.snap(x)) if self.quantize else Logits(x)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.threat.x0.device
