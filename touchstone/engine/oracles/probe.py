"""Loading a model onto a device, and measuring it there."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from touchstone.engine.device import max_rows, tune_allocator
from touchstone.engine.goals import CrossEntropy, Goal, Margin
from touchstone.engine.noise import SampleNoise
from touchstone.engine.oracles.oracle import BATCH_TOLERANCE, TorchOracle
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

MAX_PASS_SECONDS = 0.2
"""A pass takes about so long at most, as far as MIN_ROWS allow: other jobs wait for its end."""

TRIES = 3

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
    oracle: TorchOracle,
    shape: Shape,
    *,
    load_seconds: float = 0.0,
    invariance: BatchInvariance | None = None,
) -> tuple[TorchOracle, Probe]:
    """The oracle with the best pass size for images (C, H, W), and what was measured.

    `invariance` is what `measure_batch_invariance` found, if it was called already.
    """
    invariance = invariance or measure_batch_invariance(oracle, shape)
    rates = measure_gradient_rates(oracle, shape)
    rows = max(rates)
    probe = Probe(
        measured_at=datetime.now(UTC),
        device=str(oracle.device),
        torch=torch.__version__,
        load_seconds=load_seconds,
        bytes=size_in_bytes(oracle),
        frozen=_is_frozen(oracle.module),
        rows=max(MIN_ROWS, rows),
        gradient_rate=rates[rows],
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


def measure_gradient_rates(oracle: TorchOracle, shape: Shape) -> Mapping[int, float]:
    """Gradients a second of images (C, H, W): one at a time, and with the rows of a pass that `choose_rows`
    chooses, if memory holds them. Warms up the model.
    """
    on_cpu = oracle.device.type == "cpu"
    with _one_thread() if on_cpu else nullcontext():
        clock = time.thread_time if on_cpu else time.perf_counter
        rows = choose_rows(partial(time_gradient, oracle, shape, clock=clock), max_rows(oracle.device))
    rates = {1: 1 / _repeat(partial(time_gradient, oracle, shape, 1))}
    while rows not in rates and rows >= MIN_ROWS:
        with _tolerate_out_of_memory():
            rates[rows] = rows / _repeat(partial(time_gradient, oracle, shape, rows))
            break
        rows //= 2
    return rates


def choose_rows(time_pass: Callable[[int], float], largest: int) -> int:
    """The rows of a pass with gradients, if `time_pass` gives the seconds of one: the largest power of two,
    from MIN_ROWS to `largest`, of which a pass takes at most MAX_PASS_SECONDS.

    More rows a pass cost no more for each, so the choice need not be where the rate is best, which differs by
    less than measurements do; and it takes an error of the time itself to change it.
    """
    time_pass(1)  # warms up
    rows, seconds = 1, time_pass(1)
    with _tolerate_out_of_memory():
        while rows < largest and (2 if rows > 1 else MIN_ROWS) * seconds <= MAX_PASS_SECONDS:
            rows *= 2 if rows > 1 else MIN_ROWS
            seconds = statistics.median(time_pass(rows) for _ in range(TRIES))
    return max(MIN_ROWS, rows)


@contextmanager
def _tolerate_out_of_memory() -> Iterator[None]:
    """End the block where memory runs out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have PyTorch compute on the calling thread alone, whose processor time is then that of the computation,
    however busy the machine and the other threads of this process are. They keep their numbers of threads.
    """
    with ThreadpoolController().limit(limits=1, user_api="openmp"):
        yield


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


def _measure_forward_rate(oracle: TorchOracle, shape: Shape) -> float:
    image = torch.full((1, *shape), 0.5, device=oracle.device)
    query = NoisyLogits(image, SampleNoise("gaussian", 0.25, 0), range(oracle.fixed_rows))
    return len(query) / _repeat(partial(_time_answer, oracle, query))


def _repeat(time_once: Callable[[], float]) -> float:
    """The least of two measurements, or one alone if it takes long: what warms up is a small part of it."""
    seconds = time_once()
    return seconds if seconds > MAX_PASS_SECONDS else min(seconds, time_once())


def time_gradient(
    oracle: TorchOracle, shape: Shape, rows: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one pass with gradients of so many rows of shape (C, H, W)."""
    x = torch.full((rows, *shape), 0.5, device=oracle.device)
    none = torch.zeros(rows, dtype=torch.bool, device=oracle.device)
    return _time_answer(oracle, Gradient(x, CrossEntropy(Goal(none.long(), none))), clock)


def _time_answer(
    oracle: TorchOracle, query: Gradient | NoisyLogits, clock: Callable[[], float] = time.perf_counter
) -> float:
    began = clock()
    float(oracle.answer([query])[0].logits.sum())  # waits for the device
    return clock() - began
