"""How long we wait for somebody who sends or reads slowly."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Patience:
    """The seconds that somebody may still keep us waiting; `pace` bytes make up for one.

    However many have come, nobody is waited for longer than `longest` at a time.
    """

    longest: float = 10.0
    pace: float = 16 * 2**10
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.longest

    def waited(self, seconds: float, size: int) -> None:
        """Note that it took so long, and that so many bytes moved meanwhile."""
        self.left = min(self.longest, self.left - seconds + size / self.pace)
