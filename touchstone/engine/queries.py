"""The queries that a plan may send to a model, and the answers."""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from touchstone.engine.diagnosis import Tally, drop_non_finite
from touchstone.engine.goals import Loss, lower_non_finite
from touchstone.engine.noise import SampleNoise
from touchstone.engine.rows import Loop, RowIndex, Rows


@dataclass(frozen=True)
class Query(Rows):
    """A query about images `x` (B, C, H, W) in [0,1], at any size.

    It goes to the model under attack or, where one is given, to the oracle `surrogate`. Logits that are NaN
    or infinite fail the plan, unless it can do with them: `allow_non_finite`. Where a step of a loop asks
    about other rows than all of its own, `of_rows` says which.
    """

    x: Tensor
    surrogate: Any = field(default=None, kw_only=True)
    allow_non_finite: bool = field(default=False, kw_only=True)
    of_rows: RowIndex | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.x.shape[1:])

    @property
    def row_values(self) -> int:
        """Values of a row's image and, where there are several, of its gradients."""
        return math.prod(self.image_shape) * max(1, self.backward_passes)

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

    @property
    def known_loss(self) -> Tensor:
        """The losses, of an answer that must have them."""
        if self.loss is None:
            raise TypeError("the answer has no loss: only a Gradient query gets one")
        return self.loss

    def without_non_finite(self) -> Answer:
        """The answer with gradients of 0 and losses of -∞ where they are not finite."""
        loss = None if self.loss is None else lower_non_finite(self.loss, self.logits)
        return Answer(self.logits, loss, None if self.grad is None else drop_non_finite(self.grad))


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


L = TypeVar("L", bound=Loop)


@dataclass(eq=False)
class Repeat(Generic[L]):
    """The wish to have a loop run to its end; no model is asked this, but what the steps of the loop ask.

    Whoever runs it puts into `loop` and `tally` what has become of the rows, also where it is interrupted.
    """

    loop: L
    tally: Tally = field(init=False)
    open_rows: int = field(init=False)
    row_values: int = field(init=False)  # of the largest tensor

    backward_passes = 0
    surrogate = None
    allow_non_finite = True

    def __post_init__(self) -> None:
        running = self.loop.running
        self.open_rows = sum(running)
        self.kind: Hashable = self.loop.kind
        self.row_values = max(value[:1].numel() for value in self.loop.tensors())
        device = next(value.device for value in self.loop.tensors())
        self.tally = Tally.zero(len(running), device)

    def __len__(self) -> int:
        return self.open_rows

    def settle(self, places: RowIndex, loop: L, tally: Tally, *, done: bool = True) -> None:
        """Put in what has become of the rows at these places; they are done, or were interrupted."""
        self.loop = self.loop.replace_rows(places, loop)
        self.tally = self.tally.replace_rows(places, tally)
        self.open_rows -= len(places) if done else 0


T = TypeVar("T")
AnyQuery = Query | NoisyLogits | Repeat[Any]
PlanOf = Generator[AnyQuery, Answer, T]
"""A generator that yields queries, is sent their answers, and returns a T."""

Plan = PlanOf[Found]
"""What `Attack.run` returns."""
