"""The questions that a plan may ask about a model, and the answers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from touchstone.engine.goals import Loss
from touchstone.engine.noise import SampleNoise
from touchstone.engine.rows import Rows


@dataclass(frozen=True)
class Query(Rows):
    """A question about images `x` (B, C, H, W) in [0,1], at any size.

    It goes to the model under attack, or to the oracle `of` a surrogate.
    """

    x: Tensor
    surrogate: Any = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.x.shape[1:])

    @property
    def backward_passes(self) -> int:
        """Backward passes that each row takes."""
        return 0


@dataclass(frozen=True)
class Logits(Query):
    """What does the model say of `x`?"""


@dataclass(frozen=True)
class FileLogits(Logits):
    """What does it say of the 8-bit files that hold `x`, prepared bit for bit as its own pipeline would?"""


@dataclass(frozen=True)
class InputLogits(Logits):
    """What does it say of `x` (B, C, h, w) at the network's own size, resized and cropped already?"""


@dataclass(frozen=True)
class Gradient(Query):
    """What does it say, and how does each row's loss change with `x`?"""

    loss: Loss

    @property
    def backward_passes(self) -> int:  # noqa: D102
        return 1


@dataclass(frozen=True)
class Jacobian(Query):
    """What does it say, and how does the lead of each of these classes' logits over the label's change with
    `x`?

    One forward pass, and a backward pass for each of the k classes.
    """

    classes: Tensor  # (B, k) int64
    label: Tensor  # (B,) int64

    @property
    def backward_passes(self) -> int:  # noqa: D102
        return self.classes.shape[1]


@dataclass(frozen=True)
class NoisyLogits:
    """What does the model say of one image under many noises? A row for each sample index.

    Only the slice that is being asked about is ever drawn. The image (1, C, h, w) is at the network's size,
    since that is where the noise is added.
    """

    image: Tensor
    noise: SampleNoise
    samples: range

    def __len__(self) -> int:
        return len(self.samples)

    backward_passes = 0
    surrogate = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.image.shape[1:])

    def __getitem__(self, index: slice) -> NoisyLogits:
        return replace(self, samples=self.samples[index])

    @property
    def x(self) -> Tensor:
        """The noisy images, (n, C, h, w); not clipped to the box."""
        return self.image + self.noise.draw(self.image, self.samples)


@dataclass(frozen=True)
class Answer(Rows):
    """Logits (B, K) and, where a gradient was asked for, losses (B,) and gradients in the shape of `x`.

    A Jacobian has a gradient for each class, (B, k, C, H, W), and no loss.
    """

    logits: Tensor
    loss: Tensor | None = None
    grad: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """The gradients, of an answer that must have them."""
        if self.grad is None:
            raise TypeError("the answer has no gradient: only a Gradient or Jacobian query gets one")
        return self.grad


@dataclass(frozen=True)
class Found(Rows):
    """An attack's best images (B, C, H, W) before rounding, and which of them meet the goal, (B,).

    An attack that can say so tells how good each is, as in `Best`; one of several parts, which of its `parts`
    met the goal: an index, or -1.
    """

    x: Tensor
    met: Tensor
    score: Tensor | None = None  # (B,)
    part: Tensor | None = None  # (B,) int64


T = TypeVar("T")
PlanOf = Generator[Query | NoisyLogits, Answer, T]
"""A computation that asks questions on its way to a T."""

Plan = PlanOf[Found]
"""What `Attack.run` returns."""
