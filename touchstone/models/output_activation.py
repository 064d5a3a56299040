"""What a network does to its logits before it answers, and the confidences that it answers. Never imports
torch.

Attacks need logits: the gradient of a sigmoid or a softmax vanishes where it saturates. So such an end is
removed from a network or inverted behind it, and its steps are kept here to show what the network answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Values = NDArray[np.float64]

ActivationFunction = Literal[
    "affine", "clip", "exp", "hard-sigmoid", "log", "log-softmax", "sigmoid", "softmax", "tanh"
]
NORMALIZERS = ("softmax", "log-softmax")
"""Functions of all outputs of an image; the others are of each output alone."""

MAX_STEPS = 16


class ActivationStep(BaseModel):
    """One function at a network's end, none of which changes the order of the outputs.

    `parameters` are factor and offset of `affine` and `hard-sigmoid`, and the bounds of `clip`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    function: ActivationFunction
    parameters: tuple[float | None, float | None] = (None, None)
    handling: Literal["removed", "inverted"] = Field(
        "removed", description="Removed from the network, or inverted behind it."
    )

    def apply(self, values: Values) -> Values:
        """The outputs (..., K) of this step."""
        with np.errstate(divide="ignore", over="ignore"):
            found: Values = _FUNCTIONS[self.function](values, *self._numbers())
        return found

    def invert(self, value: float) -> float:
        """The number for which an elementwise step gives this one; NaN where there is none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(_INVERSES[self.function](np.float64(value), *self._numbers()))

    def _numbers(self) -> tuple[float, ...]:
        if self.function == "clip":
            low, high = self.parameters
            return (-math.inf if low is None else low, math.inf if high is None else high)
        return tuple(one for one in self.parameters if one is not None)


def compute_confidences(logits: NDArray[Any], steps: Sequence[ActivationStep], *, single: bool) -> Values:
    """The confidences (..., K) that a network with these steps answers, from its logits.

    They are its outputs where these lie in [0,1]; where they are scaled further, as percentages are, those
    before that; otherwise the softmax of its outputs. `single`: the network has one output, for the second of
    two classes; see `find_threshold`.
    """
    values = logits.astype(np.float64)
    if single:
        values = values[..., 1:] - values[..., :1] + find_threshold(steps)
    for step in _confidence_steps(steps) or [*steps, _final_step(single)]:
        values = step.apply(values)
    return np.concatenate([1 - values, values], -1) if single else values


def restore_logits(logits: NDArray[Any], steps: Sequence[ActivationStep]) -> NDArray[Any]:
    """The logits before a softmax or sigmoid, or the outputs if there is none, whose scale was removed."""
    for step in steps:
        if step.function != "affine":
            break
        logits = step.apply(logits.astype(np.float64))
    return logits.astype(np.float32)


def find_threshold(steps: Sequence[ActivationStep]) -> float:
    """The logit at which a network with one output is undecided between two classes."""
    shown = _confidence_steps(steps)
    value = 0.5 if shown else 0.0
    for step in reversed(shown or steps):
        value = step.invert(value)
    return value if math.isfinite(value) else 0.0


def _final_step(single: bool) -> ActivationStep:
    return ActivationStep(function="sigmoid" if single else "softmax")


def find_range(steps: Sequence[ActivationStep]) -> tuple[float, float]:
    """Between which numbers the outputs of these steps lie."""
    low, high = -math.inf, math.inf
    for step in steps:
        low, high = _range_after(step, low, high)
    return low, high


def _confidence_steps(steps: Sequence[ActivationStep]) -> list[ActivationStep]:
    """The steps that give confidences: up to the last whose outputs lie in [0,1]; empty where none does."""
    low, high, count = -math.inf, math.inf, 0
    for number, step in enumerate(steps, 1):
        low, high = _range_after(step, low, high)
        count = number if (low >= 0 and high <= 1) or step.function == "log-softmax" else count
    shown = list(steps[:count])
    if shown and shown[-1].function == "log-softmax":
        shown[-1] = ActivationStep(function="softmax")
    return shown


def _range_after(step: ActivationStep, low: float, high: float) -> tuple[float, float]:
    if step.function in NORMALIZERS:
        return (0.0, 1.0) if step.function == "softmax" else (-math.inf, 0.0)
    low, high = step.apply(np.array([low, high])).tolist()
    return low, high


def _affine(values: Values, factor: float, offset: float) -> Values:
    return values * factor + offset


def _sigmoid(values: Values) -> Values:
    return 1 / (1 + np.exp(-values))


def _hard_sigmoid(values: Values, factor: float, offset: float) -> Values:
    found: Values = np.clip(_affine(values, factor, offset), 0, 1)
    return found


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(-1, keepdims=True)
    found: Values = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "affine": _affine,
        "clip": np.clip,
        "exp": np.exp,
        "hard-sigmoid": _hard_sigmoid,
        "log": np.log,
        "log-softmax": _log_softmax,
        "sigmoid": _sigmoid,
        "softmax": lambda values: np.exp(_log_softmax(values)),
        "tanh": np.tanh,
    }
)

_INVERSES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "affine": lambda value, factor, offset: (value - offset) / factor,
        "clip": lambda value, low, high: value if low <= value <= high else np.nan,
        "exp": np.log,
        "hard-sigmoid": lambda value, factor, offset: (value - offset) / factor,
        "log": np.exp,
        "sigmoid": lambda value: np.log(value) - np.log1p(-value),
        "tanh": np.arctanh,
    }
)
