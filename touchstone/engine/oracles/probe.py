"""Loading a model onto a device, and measuring it there."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from touchstone.engine.certification.sampling import BATCH_TOLERANCE
from touchstone.engine.device import max_rows, tune_allocator
from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.noise import SampleNoise
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.queries import Gradient, NoisyLogits
from touchstone.memory import is_out_of_memory
from touchstone.models.loader import load_module
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Probe
from touchstone.models.random_streams import keyed_rows
from touchstone.models.store import ZOO, ModelStore

MIN_ROWS = 8
"""At least so many rows a pass: measurements on a busy machine must not lead to passes of one row."""

MAX_SECONDS = 1.5
"""How long larger and larger batches are tried."""

STOP_SHARE = 0.85
"""Larger batches are not tried once the rate falls below this share of the best."""

GRADIENT_TOLERANCE = 0.05
"""Tolerated difference, as a share of the gradient's largest value: rounding may switch a ReLU off."""

SUM_TOLERANCE = 1e-3

Shape = tuple[int, int, int]


def load_oracle(
    manifest: Manifest, device: torch.device, store: ModelStore = ZOO
) -> tuple[TorchOracle, Probe]:
    """Load a manifest's network onto a device and measure it there."""
    tune_allocator()
    began = time.perf_counter()
    oracle = TorchOracle(
        load_module(manifest, store).to(device), Preprocessing.from_manifest(manifest, device), device
    )
    seconds = time.perf_counter() - began
    shape = (manifest.input.channels, manifest.input.height, manifest.input.width)
    oracle, probe = probe_oracle(oracle, shape, load_seconds=seconds)
    return (replace(oracle, knowledge="black-box") if manifest.gradients == "none" else oracle), probe


def probe_oracle(
    oracle: TorchOracle, shape: Shape, *, load_seconds: float = 0.0, max_seconds: float = MAX_SECONDS
) -> tuple[TorchOracle, Probe]:
    """The oracle with the best pass size for images (C, H, W), and what was measured.

    `max_seconds` are those of `measure_gradient_rates`.
    """
    rates = measure_gradient_rates(oracle, shape, max_seconds=max_seconds)
    best = max(rates, key=rates.__getitem__)
    invariance = measure_batch_invariance(oracle, shape)
    probe = Probe(
        measured_at=datetime.now(UTC),
        device=str(oracle.device),
        torch=torch.__version__,
        load_seconds=load_seconds,
        bytes=size_in_bytes(oracle),
        frozen=_is_frozen(oracle.module),
        rows=max(MIN_ROWS, best),
        gradient_rate=rates[best],
        single_rate=rates[1],
        forward_rate=_measure_forward_rate(oracle, shape),
        batch_invariant=invariance.holds,
        logits_difference=invariance.logits_difference,
        gradient_difference=invariance.gradient_difference,
        softmax=invariance.softmax,
    )
    return replace(oracle, rows=probe.rows, shared=probe.batch_invariant), probe


def size_in_bytes(oracle: TorchOracle) -> int:
    """Memory that the network's weights take."""
    tensors = [*oracle.module.parameters(), *oracle.module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_gradient_rates(
    oracle: TorchOracle, shape: Shape, *, max_seconds: float = MAX_SECONDS
) -> Mapping[int, float]:
    """Gradients a second of images (C, H, W), by the rows of a pass.

    Doubles the batch until the rate falls, memory runs out or `max_seconds` have passed. Warms up the model.
    """
    _measure_gradient_rate(oracle, shape, 1)
    until = time.perf_counter() + max_seconds
    rates = {1: _measure_gradient_rate(oracle, shape, 1)}
    try:
        while max(rates) < max_rows(oracle.device) and time.perf_counter() < until:
            rows = 2 * max(rates)
            rates[rows] = _measure_gradient_rate(oracle, shape, rows)
            if rates[rows] < STOP_SHARE * max(rates.values()):
                break
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return rates


@dataclass(frozen=True)
class BatchInvariance:
    """Whether answers to a row depend on its batch, by how much, and whether they are softmax."""

    holds: bool
    logits_difference: float | None
    gradient_difference: float | None
    softmax: bool


def measure_batch_invariance(oracle: TorchOracle, shape: Shape) -> BatchInvariance:
    """Query one row in a batch, and then alone."""
    x = torch.rand(MIN_ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(oracle.device)
    with keyed_rows((row,) for row in range(MIN_ROWS)):
        all_logits, all_gradients = _query_gradient(oracle, x)
    with keyed_rows([(MIN_ROWS - 1,)]):
        logits, gradients = _query_gradient(oracle, x[-1:])
    by, by_gradient = _max_abs(all_logits[-1:] - logits), _max_abs(all_gradients[-1:] - gradients)
    holds = by <= BATCH_TOLERANCE * max(1.0, _max_abs(logits))
    holds = holds and by_gradient <= GRADIENT_TOLERANCE * _max_abs(gradients)
    return BatchInvariance(
        holds, _finite_or_none(by), _finite_or_none(by_gradient), looks_like_softmax(all_logits)
    )


def looks_like_softmax(logits: Tensor) -> bool:
    """Whether every row (B, K) is non-negative and adds up to one."""
    return bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() <= SUM_TOLERANCE).all())


def _query_gradient(oracle: TorchOracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the margin, which never saturates."""
    first = torch.zeros(len(x), dtype=torch.long, device=x.device)
    [answer] = oracle.answer([Gradient(x, Margin(Goal.of(first, targeted=False)))])
    return answer.logits, torch.zeros_like(x) if answer.grad is None else answer.grad


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max())


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_frozen(module: nn.Module) -> bool:
    takes_gradients = any(parameter.requires_grad for parameter in module.parameters())
    return not takes_gradients and not any(part.training for part in module.modules())


def _measure_gradient_rate(oracle: TorchOracle, shape: Shape, rows: int) -> float:
    x = torch.full((rows, *shape), 0.5, device=oracle.device)
    none = torch.zeros(rows, dtype=torch.bool, device=oracle.device)
    query = Gradient(x, CrossEntropy(Goal(none.long(), none)))
    return rows / min(_time_answer(oracle, query) for _ in range(2))


def _measure_forward_rate(oracle: TorchOracle, shape: Shape) -> float:
    image = torch.full((1, *shape), 0.5, device=oracle.device)
    query = NoisyLogits(image, SampleNoise("gaussian", 0.25, 0), range(oracle.fixed_rows))
    return len(query) / min(_time_answer(oracle, query) for _ in range(2))


def _time_answer(oracle: TorchOracle, query: Gradient | NoisyLogits) -> float:
    began = time.perf_counter()
    float(oracle.answer([query])[0].logits.sum())  # waits for the device
    return time.perf_counter() - began
