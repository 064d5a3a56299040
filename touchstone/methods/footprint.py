"""What a method holds in memory."""

from __future__ import annotations

from dataclasses import dataclass

from touchstone.engine.pieces import FLOAT_BYTES, rows_of_piece


@dataclass(frozen=True)
class Footprint:
    """The most that a job on one image holds at once, in images: float32 tensors in the size of the upload.

    Numbers of 64 bits count as two. `many` images more are asked about together, cut into pieces, and each of
    a piece takes `each` tensors.
    """

    images: int
    many: int = 0
    each: int = 0
    inputs: int = 0
    """Tensors in the size of the network's own input."""
    values: int = 0
    """Float32 values besides, whatever the size of the image."""

    def rows(self, values: int) -> int:
        """How many tensors of an image of so many values are held at once."""
        return self.images + self.each * min(self.many, rows_of_piece(values))

    def bytes(self, values: int, input_values: int = 0) -> int:
        """Bytes for an image of so many values, and a network whose input has `input_values`."""
        return FLOAT_BYTES * (self.rows(values) * values + self.inputs * input_values + self.values)


ATTACK = Footprint(images=28)
"""Most of it is for rounding a point to 8 bits, which is done in float64, and for judging the file."""

CERTIFICATE = Footprint(images=12, inputs=16 * 8)
"""The upload while it is resized, and the noisy copies of a pass with the numbers that they are made of."""
