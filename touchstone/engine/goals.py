"""Goals of attacks, and losses that rise towards them.

Where a logit is NaN or infinite there is no prediction: such a row meets no goal, and its loss is -∞.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.engine.rows import RowIndex, Rows, select_rows


def are_finite(logits: Tensor) -> Tensor:
    """Which rows of the logits (B, K) are a prediction, (B,) bool: neither NaN nor infinite anywhere."""
    return logits.isfinite().all(1)


def lower_non_finite(loss: Tensor, logits: Tensor) -> Tensor:
    """The losses (B,), -∞ where there is no prediction or no loss: no such point is the best."""
    return loss.masked_fill(~are_finite(logits) | loss.isnan(), -torch.inf)


def class_leads(logits: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    """By how much the logits of some classes (B, k) exceed the label's (B,); 0 where that is not finite."""
    leads = logits.gather(1, classes) - logits.gather(1, label[:, None])
    return leads.nan_to_num(0, 0, 0)


@dataclass(frozen=True)
class Goal(Rows):
    """Per row: any class but `label` (untargeted), or exactly `label` (targeted)."""

    label: Tensor  # (B,) int64
    targeted: Tensor  # (B,) bool

    @classmethod
    def of(cls, label: Tensor, *, targeted: bool) -> Goal:
        """The same kind of goal for every row."""
        return cls(label, torch.full_like(label, targeted, dtype=torch.bool))

    def is_met(self, logits: Tensor) -> Tensor:
        """Which rows of the logits (B, K) meet the goal, (B,) bool."""
        return ((logits.argmax(1) == self.label) == self.targeted) & are_finite(logits)

    def likeliest(self, logits: Tensor) -> Tensor:
        """The target (B,) or, untargeted, the likeliest class but the label."""
        other = logits.scatter(1, self.label[:, None], -torch.inf).argmax(1)
        return self.label.where(self.targeted, other)

    def log_odds(self, logits: Tensor) -> Tensor:
        """The logarithm (B,) of p/(1-p), p being the probability of the `likeliest` class that would do."""
        wanted = self.likeliest(logits)[:, None]
        odds = logits.gather(1, wanted)[:, 0] - logits.scatter(1, wanted, -torch.inf).logsumexp(1)
        return lower_non_finite(odds, logits)

    def orient(self, loss: Tensor) -> Tensor:
        """A loss that falls as `label` gains, turned so that the goal is always uphill."""
        return torch.where(self.targeted, -loss, loss)


class Loss(Protocol):
    """A function to climb, one number per row. Each row's value depends on its own logits alone.

    It is a record of rows, so that losses of many jobs can be computed as one: what differs between jobs must
    be a tensor with one entry per row.
    """

    def __call__(self, logits: Tensor) -> Tensor:
        """Losses (B,) of logits (B, K)."""
        ...

    def __len__(self) -> int:
        """How many rows."""
        ...

    def __getitem__(self, index: Tensor | slice | RowIndex) -> Self:
        """The loss of the selected rows."""
        ...

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The loss of all rows of the parts in order."""
        ...

    @property
    def kind(self) -> Hashable:
        """Losses of one kind can be joined."""
        ...


@dataclass(frozen=True)
class CrossEntropy(Rows):
    """The cross-entropy of the label, or its negative where the label is a target."""

    goal: Goal

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        loss = functional.cross_entropy(logits, self.goal.label, reduction="none")
        return lower_non_finite(self.goal.orient(loss), logits)


@dataclass(frozen=True)
class Margin(Rows):
    """The best other logit minus the label's: positive where the label is not predicted; never saturated."""

    goal: Goal

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        label = self.goal.label[:, None]
        others = logits.scatter(1, label, -torch.inf).amax(1)
        return lower_non_finite(self.goal.orient(others - logits.gather(1, label)[:, 0]), logits)


@dataclass(frozen=True, init=False)
class CustomLoss(Rows):
    """A loss that an attack defines: `function(logits, *rows)`, where every one of `rows` has one entry per
    row.

    The function must be the same object each time (defined in a module, not a lambda), or losses of
    different jobs cannot be computed together.
    """

    function: Callable[..., Tensor]
    rows: tuple[Tensor, ...]

    def __init__(self, function: Callable[..., Tensor], *rows: Tensor) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "rows", rows)

    @property
    def kind(self) -> Hashable:  # noqa: D102
        return (self.function, *(row.dtype for row in self.rows))

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        return self.function(logits, *self.rows)

    def __len__(self) -> int:
        return len(self.rows[0])

    def __getitem__(self, index: Tensor | slice | RowIndex) -> CustomLoss:
        return CustomLoss(self.function, *(select_rows(row, index) for row in self.rows))

    @classmethod
    def cat(cls, parts: Sequence[CustomLoss]) -> CustomLoss:  # noqa: D102
        columns = zip(*(part.rows for part in parts), strict=True)
        return cls(parts[0].function, *(torch.cat(column) for column in columns))

    def replace_rows(self, index: RowIndex, part: CustomLoss) -> CustomLoss:
        """This loss with that of `part` in the rows of `index`."""
        pairs = zip(self.rows, part.rows, strict=True)
        return CustomLoss(
            self.function, *(ours.index_copy(0, index.on(ours.device), theirs) for ours, theirs in pairs)
        )
