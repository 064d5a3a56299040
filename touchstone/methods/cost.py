"""What a method may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The most queries that a method may ask for, per image."""

    forward: int
    backward: int

    @classmethod
    def for_climb(cls, steps: int) -> Cost:
        """Of `engine.climb`: a gradient for each step, a second one where the loss is saturated, and a query
        for each point rounded to 8 bits.
        """
        return cls(forward=3 * steps + 2, backward=2 * steps)

    @property
    def total(self) -> int:
        """Forward and backward passes added up: the unit of the cost budget."""
        return self.forward + self.backward
