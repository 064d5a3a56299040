"""How a model gets ready to be asked: loaded onto a device, and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from touchstone.engine.certification.sampling import BATCH_TOLERANCE
from touchstone.engine.device import keep_blocks, most_rows
from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.noise import Stream
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.oracles.preprocessing import Sight
from touchstone.engine.queries import Gradient, Noisy
from touchstone.memory import lacks_memory
from touchstone.models.loader import load_module
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Probe
from touchstone.models.store import ZOO, Shelf

LEAST_ROWS = 8
"""A machine that was busy while it measured must not leave the model asked one row at a time."""

CLEARLY_WORSE = 0.85
"""Share of the best rate at which larger batches are not tried."""

GRADIENT_TOLERANCE = 0.05
"""Share of a gradient's largest value: rounding may tip a ReLU, which no longer passes its part on."""

SUM_TOLERANCE = 1e-3

Shape = tuple[int, int, int]


def load_oracle(card: Manifest, device: torch.device, shelf: Shelf = ZOO) -> tuple[Oracle, Probe]:
    """Load a manifest's network onto a device and measure it there."""
    keep_blocks()
    began = time.perf_counter()
    oracle = Oracle(load_module(card, shelf).to(device), Sight.of(card, device), device)
    seconds = time.perf_counter() - began
    return probed(oracle, (card.input.channels, card.input.height, card.input.width), load_seconds=seconds)


def probed(oracle: Oracle, shape: Shape, *, load_seconds: float = 0.0) -> tuple[Oracle, Probe]:
    """The oracle as it is best asked about images (C, H, W), and what was found out about it."""
    rates = gradient_rates(oracle, shape)
    best = max(rates, key=rates.__getitem__)
    steadiness = steadiness_of(oracle, shape)
    probe = Probe(
        measured_at=datetime.now(UTC),
        device=str(oracle.device),
        torch=torch.__version__,
        load_seconds=load_seconds,
        bytes=size_in_bytes(oracle),
        frozen=_is_frozen(oracle.module),
        rows=max(LEAST_ROWS, best),
        gradient_rate=rates[best],
        single_rate=rates[1],
        forward_rate=_forward_rate(oracle, shape),
        batch_invariant=steadiness.holds,
        logits_difference=steadiness.logits,
        gradient_difference=steadiness.gradient,
        softmax=steadiness.softmax,
    )
    return replace(oracle, rows=probe.rows, shared=probe.batch_invariant), probe


def size_in_bytes(oracle: Oracle) -> int:
    """Memory that the network's weights take."""
    tensors = [*oracle.module.parameters(), *oracle.module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradient_rates(oracle: Oracle, shape: Shape, *, patience: float = 1.5) -> Mapping[int, float]:
    """Gradients a second of images (C, H, W), by the rows of a pass.

    Doubles the batch until that has clearly become worse, memory holds no more, or for `patience` seconds.
    Warms the model up, too.
    """
    _rate(oracle, shape, 1)
    until = time.perf_counter() + patience
    rates = {1: _rate(oracle, shape, 1)}
    try:
        while max(rates) < most_rows(oracle.device) and time.perf_counter() < until:
            rows = 2 * max(rates)
            rates[rows] = _rate(oracle, shape, rows)
            if rates[rows] < CLEARLY_WORSE * max(rates.values()):
                break
    except Exception as error:
        if not lacks_memory(error):
            raise
    return rates


@dataclass(frozen=True)
class Steadiness:
    """Whether a row is answered alone as it is among others, by how much not, and what answers look like."""

    holds: bool
    logits: float | None
    gradient: float | None
    softmax: bool


def steadiness_of(oracle: Oracle, shape: Shape) -> Steadiness:
    """Ask about one row among others, and then alone."""
    x = torch.rand(LEAST_ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(oracle.device)
    all_logits, all_gradients = _asked(oracle, x)
    logits, gradients = _asked(oracle, x[-1:])
    by, by_gradient = _largest(all_logits[-1:] - logits), _largest(all_gradients[-1:] - gradients)
    holds = by <= BATCH_TOLERANCE * max(1.0, _largest(logits))
    holds = holds and by_gradient <= GRADIENT_TOLERANCE * _largest(gradients)
    return Steadiness(holds, _finite(by), _finite(by_gradient), looks_like_softmax(all_logits))


def looks_like_softmax(logits: Tensor) -> bool:
    """Whether every row (B, K) is made of shares of one."""
    return bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() <= SUM_TOLERANCE).all())


def _asked(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of a loss that never saturates."""
    first = torch.zeros(len(x), dtype=torch.long, device=x.device)
    [answer] = oracle.answer([Gradient(x, Margin(Goal.of(first, targeted=False)))])
    return answer.logits, torch.zeros_like(x) if answer.grad is None else answer.grad


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_frozen(module: nn.Module) -> bool:
    takes_gradients = any(parameter.requires_grad for parameter in module.parameters())
    return not takes_gradients and not any(part.training for part in module.modules())


def _rate(oracle: Oracle, shape: Shape, rows: int) -> float:
    x = torch.full((rows, *shape), 0.5, device=oracle.device)
    none = torch.zeros(rows, dtype=torch.bool, device=oracle.device)
    query = Gradient(x, CrossEntropy(Goal(none.long(), none)))
    return rows / min(_seconds(oracle, query) for _ in range(2))


def _forward_rate(oracle: Oracle, shape: Shape) -> float:
    image = torch.full((1, *shape), 0.5, device=oracle.device)
    query = Noisy(image, Stream("gaussian", 0.25, 0), range(oracle.fixed_rows))
    return len(query) / min(_seconds(oracle, query) for _ in range(2))


def _seconds(oracle: Oracle, query: Gradient | Noisy) -> float:
    began = time.perf_counter()
    float(oracle.answer([query])[0].logits.sum())  # waits for the device
    return time.perf_counter() - began
