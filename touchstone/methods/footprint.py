"""What a method holds in memory."""

from __future__ import annotations

from dataclasses import dataclass

from touchstone.engine.pieces import FLOAT_BYTES, PART_VALUES, PIECE_BYTES, rows_of_piece


@dataclass(frozen=True)
class Footprint:
    """The most that a job on one image holds at once, in images: float32 tensors in the size of the upload.

    Numbers of 64 bits count as two. `many` images more are asked about together, cut into pieces, and each of
    a piece takes `each` tensors.
    """

    images: int
    many: int = 0
    each: int = 0
    piece: int = PIECE_BYTES
    """Bytes of the images of a piece."""
    parts: int = 0
    """Tensors that are as large as all images asked about together, but not larger than `PART_VALUES`."""
    lines: int = 0
    """Square matrices as wide as the image's longer side: interpolation along a line."""
    inputs: int = 0
    """Tensors in the size of the network's own input."""
    values: int = 0
    """Float32 values besides, whatever the size of the image."""

    def rows(self, values: int) -> int:
        """How many tensors of an image of so many values are held at once."""
        return self.images + self.each * min(self.many, rows_of_piece(values, self.piece))

    def bytes(self, values: int, input_values: int = 0, side: int = 0) -> int:
        """Bytes for an image of so many values, none longer than `side` pixels, and a network whose input has
        `input_values`.
        """
        part = min(max(1, self.many) * values, PART_VALUES)
        images = self.rows(values) * values + self.parts * part
        return FLOAT_BYTES * (images + self.lines * side**2 + self.inputs * input_values + self.values)


ATTACK = Footprint(images=20, parts=12, lines=2)
"""Of an attack that holds a few points at a time. Parts are what rounding to 8 bits takes, in float64."""

L1_IMAGES = 60
"""Projections onto an L1 ball sort twice as many values as the image has, in float64."""

CERTIFICATE = Footprint(images=12, lines=2, inputs=16 * 8)
"""The upload while it is resized, and the noisy copies of a pass with the numbers that they are made of."""
