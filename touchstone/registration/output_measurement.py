"""What a network answers, logits or confidences, told from its answers where its layers do not show it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from touchstone.engine.oracles.probe import looks_like_softmax
from touchstone.models.output_activation import ActivationFunction, ActivationStep
from touchstone.models.output_end import invert_step

SCALES = (10.0, 1000.0)
"""Noise of such sizes, far outside images, shows whether answers are bounded, or only small."""

ROWS = 8
NEAR = 0.01
SLACK = 1e-3
PERCENT = 100.0


def measure_activation(net: nn.Module, answers: Tensor, shape: tuple[int, ...]) -> tuple[ActivationStep, ...]:
    """What must be inverted to get logits from a network's answers (B, K) to images; empty for logits.

    `shape` (C, H, W) is that of its inputs.
    """
    several = answers.shape[1] > 1
    if several and looks_like_softmax(answers):
        return _measure_inner_softmax(torch.cat([answers, _query_extremes(net, shape)]))
    if several and looks_like_softmax(answers / PERCENT):
        return (_inverted("softmax"), _inverted("affine", (PERCENT, 0.0)))
    if not _fit_unit_interval(answers):
        return ()  # logits: nothing can show otherwise, and large noise need not be asked
    bounded = _fills_unit_interval(torch.cat([answers, _query_extremes(net, shape)]))
    return (_inverted("sigmoid"),) if bounded else ()


def _measure_inner_softmax(shares: Tensor) -> tuple[ActivationStep, ...]:
    """One softmax, or two where what the outer one was given are shares (B, K) themselves."""
    softmax = _inverted("softmax")
    inner = invert_step(softmax, shares, nested=True)
    return (softmax, softmax) if _fills_unit_interval(inner, slack=SLACK) else (softmax,)


def _query_extremes(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Finite answers (B, K) to large noise, as the network's input."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(ROWS, *shape, generator=draw)
    with torch.no_grad():
        answers = torch.cat([net(scale * noise) for scale in SCALES])
    return answers[torch.isfinite(answers).all(1)]


def _fit_unit_interval(values: Tensor, slack: float = 0.0) -> bool:
    """Whether all are in [0,1]."""
    return bool(((values >= -slack) & (values <= 1 + slack)).all())


def _fills_unit_interval(values: Tensor, slack: float = 0.0) -> bool:
    """Whether all are in [0,1], and some near an end of it."""
    near_end = (values < NEAR) | (values > 1 - NEAR)
    return _fit_unit_interval(values, slack) and bool(near_end.any())


def _inverted(
    function: ActivationFunction, parameters: tuple[float | None, float | None] = (None, None)
) -> ActivationStep:
    return ActivationStep(function=function, parameters=parameters, handling="inverted")
