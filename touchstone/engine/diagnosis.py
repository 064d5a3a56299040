"""Signs that an attack was misled, and answers that are not finite made harmless."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from touchstone.engine.rows import HostNumbers, RowIndex, Rows, reads_at_once


@dataclass(frozen=True)
class Tally(Rows):
    """What the queries of a loop came to, for each row: how many, and what was amiss with the answers."""

    forward: HostNumbers
    backward: HostNumbers
    gradients: Tensor  # (B,) int64: gradients seen
    empty: Tensor  # (B,) int64: of which were zero
    non_finite_logits: Tensor  # (B,) bool
    non_finite_gradient: Tensor  # (B,) bool

    @classmethod
    def zero(cls, rows: int, device: torch.device) -> Tally:
        """Nothing queried yet."""
        none = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(HostNumbers.full(rows, 0), HostNumbers.full(rows, 0), none, none, none > 0, none > 0)

    def note(self, logits: Tensor, grad: Tensor | None, index: RowIndex | None) -> Self:
        """With one more answer, about the rows of the index, or about all."""
        at = None if index is None else index.on(logits.device)
        counted = replace(
            self,
            forward=self.forward.add(1, index),
            non_finite_logits=_join(self.non_finite_logits, ~logits.isfinite().all(1), at),
        )
        if grad is None:
            return counted
        largest = grad.flatten(1).abs().amax(1)
        return replace(
            counted,
            backward=self.backward.add(1, index),
            gradients=_add(self.gradients, torch.ones_like(largest, dtype=torch.long), at),
            empty=_add(self.empty, (largest == 0).long(), at),
            non_finite_gradient=_join(self.non_finite_gradient, ~largest.isfinite(), at),
        )


def _add(counts: Tensor, more: Tensor, at: Tensor | None) -> Tensor:
    return counts + more if at is None else counts.index_add(0, at, more)


def _join(flags: Tensor, more: Tensor, at: Tensor | None) -> Tensor:
    return flags | more if at is None else _add(flags.long(), more.long(), at) > 0


@dataclass
class Diagnosis:
    """Signs that an attack was misled, as by gradient masking (Athalye et al. 2018, section 3.1);
    docs/attacks.md lists them all.
    """

    gradients: int = 0
    empty: int = 0
    signs: set[str] = field(default_factory=set)

    def note_logits(self, logits: Tensor) -> None:
        """Note points (B, K) at which the model gave no prediction."""
        if not bool(logits.isfinite().all()):
            self.signs.add("non_finite_logits")

    def note_gradients(self, grad: Tensor) -> None:
        """Note gradients, (B, C, H, W) or (B, k, C, H, W), that are zero or not finite."""
        total = grad.flatten(1).sum(1)  # a row is examined only where its sum leaves a doubt
        self.gradients += len(grad)
        self.empty += int((~grad[total == 0].flatten(1).any(1)).sum())
        if not bool(grad[~total.isfinite()].isfinite().all()):
            self.signs.add("non_finite_gradient")

    def note_tally(self, tally: Tally) -> None:
        """Note what the queries of a loop came to."""
        sums = (tally.gradients, tally.empty, tally.non_finite_logits, tally.non_finite_gradient)
        gradients, empty, logits, grads = torch.stack([values.sum() for values in sums]).tolist()
        self.gradients += gradients
        self.empty += empty
        self.signs |= {"non_finite_logits"} if logits else set()
        self.signs |= {"non_finite_gradient"} if grads else set()

    def codes(self) -> list[str]:
        """The signs that were found, as stable codes."""
        zero = {"zero_gradient"} if self.gradients and self.empty == self.gradients else set()
        return sorted(self.signs | zero)


def drop_non_finite(grad: Tensor) -> Tensor:
    """The gradients with 0 in place of NaN and infinity."""
    if reads_at_once(grad) and bool(grad.sum().isfinite()):
        return grad
    return grad.nan_to_num(0, 0, 0)
