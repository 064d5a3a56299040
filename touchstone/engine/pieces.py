"""Work on many images at the size of the upload, in pieces of bounded bytes. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_BYTES = 4

PIECE_BYTES = 2**26
"""Bytes of the images of a piece: so many of a population, of samples or of gradients are held at a time. Of
224x224 these are more than a hundred, so that only large images, or very many, are cut.
"""

NEIGHBOR_BYTES = 2**21
"""Bytes of the neighbors, at a time, from which the normal at a point is estimated in float64."""

PART_VALUES = 2**20
"""Values of an image that work in float64 keeps at a time."""


def rows_of_piece(values: int, limit: int | None = None) -> int:
    """How many images of so many values make a piece of `limit` bytes: at least one."""
    return max(1, (PIECE_BYTES if limit is None else limit) // (FLOAT_BYTES * max(1, values)))


def cut(count: int, values: int) -> Iterator[slice]:
    """Pieces of `count` images of so many values each."""
    rows = rows_of_piece(values)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


class RowSum:
    """The sum over the second dimension of `count` rows that arrive in parts (B, n, ...).

    Rows are added in the order in which `torch.sum` adds vectors on a CPU: sixteen at a time, then sixteen
    such sums, and so on. So the sum is the same however it was cut, and that of the whole to the bit; but for
    the last few columns where they fill no vector, which torch adds in an order of its own.
    """

    _STEP, _LEVELS = 16, 4

    def __init__(self, count: int) -> None:
        self._count, self._added = count, 0
        self._levels: list[Tensor | None] = [None] * self._LEVELS

    def add(self, part: Tensor) -> None:
        """Add rows."""
        if part.shape[1] == self._count:
            self._levels[0] = part.sum(1)
            return
        for row in part.unbind(1):
            self._levels[0] = _add(self._levels[0], row)
            self._added += 1
            self._carry()

    def _carry(self) -> None:
        """Move full sums a level up."""
        size = self._STEP
        for level in range(1, self._LEVELS):
            if self._added % size:
                return
            self._levels[level] = _add(self._levels[level], self._levels[level - 1])
            self._levels[level - 1] = None
            size *= self._STEP

    def total(self) -> Tensor:
        """The sum of all rows."""
        total: Tensor | None = self._levels[0]
        for level in self._levels[1:]:
            total = _add(total, level)
        if total is None:
            raise ValueError("no rows were added")
        return total


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
