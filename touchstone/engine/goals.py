"""What an attack is after, and the losses that rise towards it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.engine.rows import Rows


@dataclass(frozen=True)
class Goal(Rows):
    """Per row: leave `label` (untargeted), or reach it (targeted)."""

    label: Tensor  # (B,) int64
    targeted: Tensor  # (B,) bool

    @classmethod
    def of(cls, label: Tensor, *, targeted: bool) -> Goal:
        """The same kind of goal for every row."""
        return cls(label, torch.full_like(label, targeted, dtype=torch.bool))

    def met(self, logits: Tensor) -> Tensor:
        """Which rows of the logits (B, K) meet the goal, (B,) bool."""
        return (logits.argmax(1) == self.label) == self.targeted

    def signed(self, loss: Tensor) -> Tensor:
        """A loss that falls as `label` gains, turned so that the goal is always uphill."""
        return torch.where(self.targeted, -loss, loss)


class Loss(Protocol):
    """A function to climb, one number per row. Each row's value depends on its own logits alone."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Losses (B,) of logits (B, K)."""
        ...


@dataclass(frozen=True)
class CrossEntropy(Rows):
    """The cross-entropy of the label, or its negative where the label is a target."""

    goal: Goal

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        return self.goal.signed(functional.cross_entropy(logits, self.goal.label, reduction="none"))


@dataclass(frozen=True)
class Margin(Rows):
    """The best other logit minus the label's: positive once the label lost. Its gradient never saturates."""

    goal: Goal

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        label = self.goal.label[:, None]
        others = logits.scatter(1, label, -torch.inf).amax(1)
        return self.goal.signed(others - logits.gather(1, label)[:, 0])
