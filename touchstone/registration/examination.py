"""The first run of a model: its answers, whether its gradient is right, and its cost."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.oracles.probe import MIN_ROWS, probe_oracle
from touchstone.errors import InvalidModel, ModelUnusable
from touchstone.memory import is_out_of_memory
from touchstone.models.loader import BuiltNetwork, build_network
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.models.output_end import add_output_end
from touchstone.registration.example_accuracy import LabelledPixels, measure_examples
from touchstone.registration.gradients import GRADIENT_TOLERANCE, gradient_error, has_finite_gradient
from touchstone.registration.messages import OutputEnd, TrialResult
from touchstone.registration.output_measurement import measure_activation

LATENCY_SECONDS = 0.5
"""For batches of different sizes: a worker measures them anew when it loads the model."""

_PEAK_MEMORY = re.compile(r"VmHWM:\s+(\d+) kB")


def probe_model(
    manifest: Manifest,
    data: bytes,
    on_step: Callable[[str], None],
    examples: LabelledPixels | None = None,
) -> TrialResult:
    """Try a model on the CPU, and on examples if there are any; `on_step` is called at each step.

    Raises InvalidModel and UnsupportedOperator where it cannot be used, and ModelUnusable where a package
    is missing that it needs.
    """
    began = time.perf_counter()
    on_step("build")
    built = _build_network(manifest, data)
    seconds = time.perf_counter() - began
    on_step("answer")
    oracle, found = _add_end(manifest, built)
    on_step("gradient check")
    error = gradient_error(oracle, _noise_images(manifest, 1))
    images = {name: x[:1] for name, x in _probe_images(manifest).items()}
    undefined = [name for name, x in images.items() if not has_finite_gradient(oracle, x)]
    row_bytes = _measure_row_bytes(manifest, oracle)
    on_step("latency")
    shape = (manifest.input.channels, manifest.input.height, manifest.input.width)
    _, probe = probe_oracle(oracle, shape, load_seconds=seconds, max_seconds=LATENCY_SECONDS)
    model_probe = ModelProbe(
        **probe.model_dump(),
        deterministic=_is_deterministic(manifest, oracle),
        forward_ms=1000 / probe.forward_rate,
        gradient_ms=1000 / probe.gradient_rate,
        row_bytes=row_bytes,
        gradient_error=error if math.isfinite(error) else None,
        gradient_tolerance=GRADIENT_TOLERANCE,
        gradient_agrees=error <= GRADIENT_TOLERANCE,
        gradient_not_finite_at=tuple(undefined),
    )
    if examples is not None:
        on_step("examples")
        accuracy = measure_examples(oracle, manifest, examples)
        model_probe = model_probe.model_copy(update={"examples": accuracy})
    return TrialResult(
        parameters=_count_parameters(oracle.module), gradients=built.gradients, end=found, probe=model_probe
    )


def complete_manifest(manifest: Manifest, data: bytes) -> Manifest:
    """The manifest completed from its file, checked in this process; raises as `probe_model` does."""
    built = _build_network(manifest, data)
    oracle, found = _add_end(manifest, built)
    found_manifest = found.complete_manifest(manifest, _count_parameters(oracle.module))
    return found_manifest.model_copy(update={"gradients": built.gradients})


def _build_oracle(manifest: Manifest, net: nn.Module) -> TorchOracle:
    device = torch.device("cpu")
    return TorchOracle(net, Preprocessing.from_manifest(manifest, device), device)


def _build_network(manifest: Manifest, data: bytes) -> BuiltNetwork:
    try:
        return build_network(manifest, data)
    except ModelUnusable as unfit:
        if isinstance(unfit.__cause__, ImportError):
            raise  # this process lacks a package
        raise InvalidModel(unfit.detail) from None


def _add_end(manifest: Manifest, built: BuiltNetwork) -> tuple[TorchOracle, OutputEnd]:
    """The network with what turns its answers into logits, as they show it."""
    oracle = _build_oracle(manifest, built.module.eval().requires_grad_(False))
    spec = manifest.input
    answers = _query_images(manifest, oracle, 1 if built.single else len(manifest.classes))
    measured = measure_activation(oracle.module, answers, (spec.channels, spec.height, spec.width))
    found = OutputEnd(activation=(*measured, *built.activation), single=built.single)
    net = add_output_end(oracle.module, found.activation, single=found.single)
    return _build_oracle(manifest, net.eval()), found


def _query_images(manifest: Manifest, oracle: TorchOracle, outputs: int) -> Tensor:
    """Answers (B, K) to black, white, gray and noise. Raises InvalidModel unless they are finite."""
    answers = []
    for name, x in _probe_images(manifest).items():
        logits = _forward(manifest, oracle, x, outputs)
        if not bool(torch.isfinite(logits).all()):
            raise InvalidModel(
                f"the network answers NaN or infinity to {name}; check its weights and its normalization"
            )
        answers.append(logits)
    return torch.cat(answers)


def _forward(manifest: Manifest, oracle: TorchOracle, x: Tensor, outputs: int | None = None) -> Tensor:
    """Answers (B, K) to images; K is the number of classes unless `outputs` says otherwise."""
    outputs = outputs or len(manifest.classes)
    with torch.no_grad():
        try:
            logits = oracle.module(oracle.preprocessing.apply(x))
        except (RuntimeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise InvalidModel(
                f"the network cannot be run on images of {manifest.input.channels}x{manifest.input.height}x"
                f"{manifest.input.width}: {error}"[:500]
            ) from None
    if logits.shape != (len(x), outputs):
        raise InvalidModel(
            f"for {len(x)} images the network answers {tuple(logits.shape)}, not {len(x), outputs}",
            field="classes",
        )
    return logits  # type: ignore[no-any-return]


def _is_deterministic(manifest: Manifest, oracle: TorchOracle) -> bool:
    x = _noise_images(manifest, MIN_ROWS)
    return torch.equal(_forward(manifest, oracle, x), _forward(manifest, oracle, x))


def _measure_row_bytes(manifest: Manifest, oracle: TorchOracle) -> int | None:
    """By how much the peak memory of the process grows with each row of a pass with gradients."""
    peaks = [_measure_peak(oracle, _noise_images(manifest, rows)) for rows in (1, 1 + MIN_ROWS)]
    if peaks[0] is None or peaks[1] is None:
        return None
    return max(0, peaks[1] - peaks[0]) // MIN_ROWS


def _measure_peak(oracle: TorchOracle, x: Tensor) -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(oracle.module(oracle.preprocessing.apply(leaf)).sum(), leaf)
    found = _PEAK_MEMORY.search(Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else None


def _probe_images(manifest: Manifest) -> dict[str, Tensor]:
    """One image of black, white and gray each, and several of noise."""
    noise = _noise_images(manifest, MIN_ROWS)
    black = noise[:1] * 0
    return {"black": black, "white": black + 1, "gray": black + 0.5, "noise": noise}


def _noise_images(manifest: Manifest, rows: int) -> Tensor:
    spec, draw = manifest.input, torch.Generator().manual_seed(0)
    return torch.rand(rows, spec.channels, spec.height, spec.width, generator=draw)


def _count_parameters(net: nn.Module) -> int:
    tensors = [*net.parameters(), *net.buffers()]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
