"""The questions that a plan may ask about a model, and the answers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from touchstone.engine.goals import CrossEntropy, Margin
from touchstone.engine.noise import Stream
from touchstone.engine.rows import Rows


@dataclass(frozen=True)
class Query(Rows):
    """A question about images `x` (B, C, H, W) in [0,1], at any size."""

    x: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.x.shape[1:])


@dataclass(frozen=True)
class Logits(Query):
    """What does the model say of `x`?"""


@dataclass(frozen=True)
class Saved(Logits):
    """What does it say of the 8-bit files that hold `x`, prepared bit for bit as its own pipeline would?"""


@dataclass(frozen=True)
class Placed(Logits):
    """What does it say of `x` (B, C, h, w) at the network's own size, resized and cropped already?"""


@dataclass(frozen=True)
class Gradient(Query):
    """What does it say, and how does each row's loss change with `x`?"""

    loss: CrossEntropy | Margin


@dataclass(frozen=True)
class Noisy:
    """What does the model say of one image under many noises? A row for each sample index.

    Only the slice that is being asked about is ever drawn. The image (1, C, h, w) is at the network's size,
    since that is where the noise is added.
    """

    image: Tensor
    stream: Stream
    samples: range

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.image.shape[1:])

    def __getitem__(self, index: slice) -> Noisy:
        return replace(self, samples=self.samples[index])

    @property
    def x(self) -> Tensor:
        """The noisy images, (n, C, h, w); not clipped to the box."""
        return self.image + self.stream.draw(self.image, self.samples)


@dataclass(frozen=True)
class Answer(Rows):
    """Logits (B, K) and, where a gradient was asked for, losses (B,) and gradients in the shape of `x`."""

    logits: Tensor
    loss: Tensor | None = None
    grad: Tensor | None = None


@dataclass(frozen=True)
class Found(Rows):
    """An attack's best images (B, C, H, W) before rounding, and which of them meet the goal, (B,)."""

    x: Tensor
    met: Tensor


T = TypeVar("T")
Asking = Generator[Query | Noisy, Answer, T]
"""A computation that asks questions on its way to a T."""

Plan = Asking[Found]
"""What `Attack.run` returns."""
