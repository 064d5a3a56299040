"""Operators that draw random numbers, for networks that answer at random on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from touchstone.models.onnx.operators.constants import torch_dtype
from touchstone.models.onnx.registry import Known, operator
from touchstone.models.random_streams import Draw, current_streams


def _draw(shape: Sequence[int], draw: Draw) -> Tensor:
    """Random numbers in float32; only their shape while shapes are inferred."""
    if torch.empty(0).is_meta:
        return torch.empty(tuple(shape))
    streams = current_streams()
    return torch.from_numpy(streams.draw(shape, draw)).to(streams.device)


def _draw_uniform(shape: Sequence[int]) -> Tensor:
    return _draw(shape, lambda stream, size: stream.random(size, dtype=np.float32))


def _draw_normal(shape: Sequence[int]) -> Tensor:
    return _draw(shape, lambda stream, size: stream.standard_normal(size, dtype=np.float32))


@operator("RandomNormal")
def random_normal(
    *,
    shape: tuple[int, ...],
    mean: float = 0.0,
    scale: float = 1.0,
    dtype: int = 1,
    seed: float | None = None,
) -> Tensor:
    return (mean + scale * _draw_normal(shape)).to(torch_dtype(dtype))


@operator("RandomNormalLike")
def random_normal_like(
    x: Tensor, *, mean: float = 0.0, scale: float = 1.0, dtype: int | None = None, seed: float | None = None
) -> Tensor:
    return (mean + scale * _draw_normal(x.shape)).to(x.dtype if dtype is None else torch_dtype(dtype))


@operator("RandomUniform")
def random_uniform(
    *, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: int = 1, seed: float | None = None
) -> Tensor:
    return (low + (high - low) * _draw_uniform(shape)).to(torch_dtype(dtype))


@operator("RandomUniformLike")
def random_uniform_like(
    x: Tensor, *, low: float = 0.0, high: float = 1.0, dtype: int | None = None, seed: float | None = None
) -> Tensor:
    drawn = low + (high - low) * _draw_uniform(x.shape)
    return drawn.to(x.dtype if dtype is None else torch_dtype(dtype))


@operator("Bernoulli", since=15)
def bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """One with the probability that x gives, which has no gradient; otherwise zero."""
    return (_draw_uniform(x.shape) < x).to(x.dtype if dtype is None else torch_dtype(dtype))


@operator("Dropout", since=12)
def dropout(
    x: Tensor,
    ratio: Known | None = None,
    training: Known | None = None,
    *,
    seed: int | None = None,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    used = 0.5 if ratio is None else float(ratio.item())
    return apply_dropout(x, used if training is not None and training.item() else 0.0, outputs)


@operator("Dropout", since=7)
def legacy_dropout(x: Tensor, *, ratio: float = 0.5, outputs: int = 1) -> Tensor | tuple[Tensor, Tensor]:
    return apply_dropout(x, 0.0, outputs)


def apply_dropout(x: Tensor, ratio: float, outputs: int) -> Tensor | tuple[Tensor, Tensor]:
    """Set this share of the numbers to zero and scale the others; with a second output, which were kept."""
    if ratio <= 0:
        return x if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    kept = _draw_uniform(x.shape) >= ratio
    return (x * kept / (1 - ratio)).to(x.dtype), kept
