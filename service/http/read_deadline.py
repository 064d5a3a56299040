"""A deadline for a client that sends or reads slowly."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadDeadline:
    """The seconds that a client may still take; each `min_rate` bytes add one.

    No matter how many bytes have moved, the deadline is at most `max_wait` seconds away.
    """

    max_wait: float = 10.0
    min_rate: float = 16 * 2**10
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.max_wait

    def spend(self, seconds: float, size: int) -> None:
        """Note that it took so long, and that so many bytes moved meanwhile."""
        self.left = min(self.max_wait, self.left - seconds + size / self.min_rate)
