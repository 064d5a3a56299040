"""The queries that a plan may send to a model, and the answers."""

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
    """A query about images `x` (B, C, H, W) in [0,1], at any size.

    It goes to the model under attack or, where one is given, to the oracle `surrogate`. Logits that are NaN
    or infinite fail the plan, unless it can do with them: `allow_non_finite`.
    """

    x: Tensor
    surrogate: Any = field(default=None, kw_only=True)
    allow_non_finite: bool = field(default=False, kw_only=True)

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
    """The logits of `x`."""


@dataclass(frozen=True)
class FileLogits(Logits):
    """The logits of the 8-bit files that hold `x`, preprocessed bit for bit like the model's own files."""


@dataclass(frozen=True)
class InputLogits(Logits):
    """The logits of `x` (B, C, h, w) at the network's own size, which is not resized or cropped again."""


@dataclass(frozen=True)
class Gradient(Query):
    """The logits, and the gradient of each row's loss with respect to `x`."""

    loss: Loss

    @property
    def backward_passes(self) -> int:  # noqa: D102
        return 1


@dataclass(frozen=True)
class Jacobian(Query):
    """The logits, and for each of these classes the gradient, with respect to `x`, of its logit minus the
    label's.

    One forward pass, and a backward pass for each of the k classes.
    """

    classes: Tensor  # (B, k) int64
    label: Tensor  # (B,) int64

    @property
    def backward_passes(self) -> int:  # noqa: D102
        return self.classes.shape[1]


@dataclass(frozen=True)
class NoisyLogits:
    """The logits of one image under noise, a row for each sample index.

    Noise is drawn only for the slice of a pass. The image (1, C, h, w) is at the network's size,
    since that is where the noise is added.
    """

    image: Tensor
    noise: SampleNoise
    samples: range

    def __len__(self) -> int:
        return len(self.samples)

    backward_passes = 0
    surrogate = None
    allow_non_finite = False

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
    """Logits (B, K) and, where a gradient was queried, losses (B,) and gradients in the shape of `x`.

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

    `score`, where an attack gives one, ranks the images as in `Best`. `part` is the index of the part of the
    attack that met the goal, or -1.
    """

    x: Tensor
    met: Tensor
    score: Tensor | None = None  # (B,)
    part: Tensor | None = None  # (B,) int64


T = TypeVar("T")
PlanOf = Generator[Query | NoisyLogits, Answer, T]
"""A generator that yields queries, is sent their answers, and returns a T."""

Plan = PlanOf[Found]
"""What `Attack.run` returns."""
