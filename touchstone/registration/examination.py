"""Trying a model for the first time: what it answers, whether its gradient is right, what it costs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.oracles.preprocessing import Sight
from touchstone.engine.oracles.probe import LEAST_ROWS, looks_like_softmax, probed
from touchstone.errors import InvalidModel, ModelUnusable
from touchstone.memory import lacks_memory
from touchstone.models.loader import Logarithm, imported, module_of
from touchstone.models.manifest import ONNX, Manifest
from touchstone.models.measurements import Examined
from touchstone.registration.messages import Findings, Softmax

DIRECTIONS = 8
STEP_SIZES = (4e-3, 1e-3, 2.5e-4)
"""Rounding spoils differences of short steps, and bends of the network those of long ones."""

GRADIENT_TOLERANCE = 0.05
TINY = 1e-30
_BEFORE = re.compile(r"VmHWM:\s+(\d+) kB")


def examine(card: Manifest, data: bytes, begin: Callable[[str], None]) -> Findings:
    """Try a model on the processor; `begin` is told of each step.

    Raises InvalidModel and UnsupportedOperator where it cannot be used, and ModelUnusable where a package
    is missing that it needs.
    """
    began = time.perf_counter()
    begin("build")
    net, softmax = _built(card, data)
    oracle = _oracle(card, net)
    seconds = time.perf_counter() - began
    begin("answer")
    oracle, softmax = _with_logits(card, oracle, softmax)
    begin("differentiate")
    error = gradient_error(oracle, _noise(card, 1))
    row_bytes = _bytes_of_a_row(card, oracle)
    begin("measure")
    shape = (card.input.channels, card.input.height, card.input.width)
    _, probe = probed(oracle, shape, load_seconds=seconds)
    examined = Examined(
        **probe.model_dump(),
        deterministic=_is_deterministic(card, oracle),
        forward_ms=1000 / probe.forward_rate,
        gradient_ms=1000 / probe.gradient_rate,
        row_bytes=row_bytes,
        gradient_error=error if math.isfinite(error) else None,
        gradient_tolerance=GRADIENT_TOLERANCE,
        gradient_agrees=error <= GRADIENT_TOLERANCE,
    )
    return Findings(parameters=_numbers(oracle.module), softmax=softmax, examined=examined)


def completed(card: Manifest, data: bytes) -> Manifest:
    """The card with what its file tells, checked in this process; raises as `examine` does."""
    net, softmax = _built(card, data)
    oracle, softmax = _with_logits(card, _oracle(card, net), softmax)
    return card.model_copy(update={"parameters": _numbers(oracle.module), "softmax": softmax})


def _oracle(card: Manifest, net: nn.Module) -> Oracle:
    device = torch.device("cpu")
    return Oracle(net, Sight.of(card, device), device)


def _with_logits(card: Manifest, oracle: Oracle, softmax: Softmax) -> tuple[Oracle, Softmax]:
    """The oracle, made to answer logits where it turns out to answer probabilities."""
    answers = _answers(card, oracle)
    if softmax != "none" or not looks_like_softmax(answers):
        return oracle, softmax
    return _oracle(card, nn.Sequential(oracle.module, Logarithm()).eval()), "inverted"


def _built(card: Manifest, data: bytes) -> tuple[nn.Module, Softmax]:
    """The network, and what became of a Softmax at its end."""
    if card.architecture == ONNX:
        found = imported(card, data)
        return found.module, "removed" if found.softmax_removed else "none"
    try:
        return module_of(card, data), "none"
    except ModelUnusable as unfit:
        if isinstance(unfit.__cause__, ImportError):
            raise  # what is missing is missing here
        raise InvalidModel(unfit.detail) from None


def _answers(card: Manifest, oracle: Oracle) -> Tensor:
    """Logits (B, K) of black, white, grey and noise. Raises InvalidModel unless they are finite."""
    noise = _noise(card, LEAST_ROWS)
    named = {"black": noise * 0, "white": noise * 0 + 1, "grey": noise * 0 + 0.5, "noise": noise}
    answers = []
    for name, x in named.items():
        logits = _asked(card, oracle, x)
        if not bool(torch.isfinite(logits).all()):
            raise InvalidModel(
                f"the network answers NaN or infinity to {name}; check its weights and its normalisation"
            )
        answers.append(logits)
    return torch.cat(answers)


def _asked(card: Manifest, oracle: Oracle, x: Tensor) -> Tensor:
    with torch.no_grad():
        try:
            logits = oracle.module(oracle.sight.see(x))
        except (RuntimeError, ValueError, IndexError) as error:
            if lacks_memory(error):
                raise
            raise InvalidModel(
                f"the network cannot be asked about images of {card.input.channels}x{card.input.height}x"
                f"{card.input.width}: {error}"[:500]
            ) from None
    if logits.shape != (len(x), len(card.classes)):
        raise InvalidModel(
            f"for {len(x)} images the network answers {tuple(logits.shape)}, not {len(x), len(card.classes)}",
            field="classes",
        )
    return logits  # type: ignore[no-any-return]


def gradient_error(oracle: Oracle, x: Tensor) -> float:
    """How far the gradient at x (1, C, H, W) is from central differences of the answers.

    The median over random directions, as a share of the gradient's length, so that a few bends of the network
    on the way do not count; of the step size that does best.
    """
    draw = torch.Generator().manual_seed(1)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = oracle.module(oracle.sight.see(leaf))
        weights = torch.randn(logits.shape, generator=draw)
        [gradient] = torch.autograd.grad((logits * weights).sum(), leaf)
    signs = torch.randint(0, 2, (DIRECTIONS, *x.shape[1:]), generator=draw) * 2.0 - 1
    told = (gradient.double() * signs).flatten(1).sum(1)
    length = float(gradient.double().norm())
    errors = []
    for size in STEP_SIZES:
        found = _differences(oracle, x, signs, weights, size)
        scale = max(length, float(found.abs().max()), TINY)
        errors.append(float((found - told).abs().median()) / scale)
    return min(errors)


def _differences(oracle: Oracle, x: Tensor, signs: Tensor, weights: Tensor, size: float) -> Tensor:
    """Change of the weighted answers along each direction, for one unit, (D,)."""
    ends = []
    with torch.no_grad():
        for side in (size, -size):
            logits = torch.cat([oracle.module(oracle.sight.see(x + side * sign[None])) for sign in signs])
            ends.append((logits.double() * weights).sum(1))
    return (ends[0] - ends[1]) / (2 * size)


def _is_deterministic(card: Manifest, oracle: Oracle) -> bool:
    x = _noise(card, LEAST_ROWS)
    return torch.equal(_asked(card, oracle, x), _asked(card, oracle, x))


def _bytes_of_a_row(card: Manifest, oracle: Oracle) -> int | None:
    """What the peak of the process grows by where a pass with gradients takes more rows."""
    peaks = [_peak_of(oracle, _noise(card, rows)) for rows in (1, 1 + LEAST_ROWS)]
    if peaks[0] is None or peaks[1] is None:
        return None
    return max(0, peaks[1] - peaks[0]) // LEAST_ROWS


def _peak_of(oracle: Oracle, x: Tensor) -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    except OSError:
        return None
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(oracle.module(oracle.sight.see(leaf)).sum(), leaf)
    found = _BEFORE.search(Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else None


def _noise(card: Manifest, rows: int) -> Tensor:
    spec, draw = card.input, torch.Generator().manual_seed(0)
    return torch.rand(rows, spec.channels, spec.height, spec.width, generator=draw)


def _numbers(net: nn.Module) -> int:
    tensors = [*net.parameters(), *net.buffers()]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
