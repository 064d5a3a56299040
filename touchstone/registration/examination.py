"""The first run of a model: its answers, whether its gradient is right, and its cost."""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.oracles.probe import (
    MIN_ROWS,
    BatchInvariance,
    Shape,
    measure_batch_invariance,
    probe_oracle,
)
from touchstone.engine.queries import Answer, NoisyLogits, Query
from touchstone.errors import InvalidModel, ModelUnusable
from touchstone.memory import is_out_of_memory
from touchstone.models.loader import BuiltNetwork, build_network
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.models.output_end import add_output_end
from touchstone.registration.example_accuracy import LabelledPixels, measure_examples
from touchstone.registration.gradients import GRADIENT_TOLERANCE, gradient_error, measure_gradient
from touchstone.registration.messages import OutputEnd, TrialResult
from touchstone.registration.output_measurement import measure_activation

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
    answers = _query_images(manifest, built)
    oracle, found = _add_end(manifest, built, answers)
    on_step("gradient check")
    gradients = {name: measure_gradient(oracle, x[:1]) for name, x in _probe_images(manifest).items()}
    error = gradient_error(oracle, gradients["noise"])
    on_step("latency")
    shape = (manifest.input.channels, manifest.input.height, manifest.input.width)
    invariance, row_bytes = _compare_batches(oracle, shape)
    _, probe = probe_oracle(oracle, shape, load_seconds=seconds, invariance=invariance)
    model_probe = ModelProbe(
        **probe.model_dump(),
        deterministic=answers.deterministic,
        forward_ms=1000 / probe.forward_rate,
        gradient_ms=1000 / probe.gradient_rate,
        row_bytes=row_bytes,
        gradient_error=error if math.isfinite(error) else None,
        gradient_tolerance=GRADIENT_TOLERANCE,
        gradient_agrees=error <= GRADIENT_TOLERANCE,
        gradient_not_finite_at=tuple(name for name, one in gradients.items() if not one.is_finite),
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
    oracle, found = _add_end(manifest, built, _query_images(manifest, built))
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


def _add_end(manifest: Manifest, built: BuiltNetwork, answers: ImageAnswers) -> tuple[TorchOracle, OutputEnd]:
    """The network with what turns its answers into logits, as they show it."""
    spec = manifest.input
    measured = measure_activation(built.module, answers.values, (spec.channels, spec.height, spec.width))
    found = OutputEnd(activation=(*measured, *built.activation), single=built.single)
    net = add_output_end(built.module, found.activation, single=found.single)
    return _build_oracle(manifest, net.eval()), found


class ImageAnswers(NamedTuple):
    """Answers (B, K) to black, white, gray and noise; whether those to noise were the same bits twice."""

    values: Tensor
    deterministic: bool


def _query_images(manifest: Manifest, built: BuiltNetwork) -> ImageAnswers:
    """Answers of a network as it was built. Raises InvalidModel unless they are finite."""
    oracle = _build_oracle(manifest, built.module.eval().requires_grad_(False))
    outputs = 1 if built.single else len(manifest.classes)
    images, answers = _probe_images(manifest), {}
    for name, x in images.items():
        answers[name] = _forward(manifest, oracle, x, outputs)
        if not bool(torch.isfinite(answers[name]).all()):
            raise InvalidModel(
                f"the network answers NaN or infinity to {name}; check its weights and its normalization"
            )
    again = _forward(manifest, oracle, images["noise"], outputs)
    return ImageAnswers(torch.cat(list(answers.values())), torch.equal(answers["noise"], again))


def _forward(manifest: Manifest, oracle: TorchOracle, x: Tensor, outputs: int) -> Tensor:
    """Answers (B, K) to images, where K is `outputs`."""
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


@dataclass(frozen=True, eq=False)
class MeteredOracle(TorchOracle):
    """Records the peak memory of the process in each pass, in bytes; None where that cannot be read."""

    peaks: list[int | None] = field(default_factory=list)

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> list[Answer]:
        """See `TorchOracle.answer`."""
        reset = _reset_peak()
        answers = super().answer(queries)
        self.peaks.append(_read_peak() if reset else None)
        return answers


def _compare_batches(oracle: TorchOracle, shape: Shape) -> tuple[BatchInvariance, int | None]:
    """Whether answers depend on the batch, and the memory that each further row of a pass takes."""
    metered = MeteredOracle(oracle.module, oracle.preprocessing, oracle.device)
    invariance = measure_batch_invariance(metered, shape)
    batch, single = metered.peaks  # of MIN_ROWS rows, and of one
    row_bytes = None if batch is None or single is None else max(0, batch - single) // (MIN_ROWS - 1)
    return invariance, row_bytes


def _reset_peak() -> bool:
    """Have the peak memory of the process counted anew, without what the allocator only keeps; whether the
    system can.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _read_peak() -> int | None:
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
