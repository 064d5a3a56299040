"""The device, and image passes a second by rows of a pass and number format."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import Setup
from benchmarks.networks import NormalizedNetwork
from touchstone.memory import is_out_of_memory

FORMATS = ("fp32", "fp32 channels_last", "tf32 channels_last", "bf16 channels_last")


def describe_device(setup: Setup, note: Note) -> None:
    """What it is, and the rows of a pass that the probe chooses for each model."""
    note("device", _describe(setup.device))
    for name in setup.sizes.attacked:
        note(f"rows {name}", setup.model(name).oracle.rows)


def _describe(device: torch.device) -> dict[str, Any]:
    known: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return {**known, "name": platform.processor() or platform.machine(), "type": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        **known,
        "name": properties.name,
        "type": device.type,
        "gigabytes": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": query_nvidia_smi("driver_version"),
    }


def query_nvidia_smi(field: str) -> str | None:
    """The first line that nvidia-smi answers; None without it."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0].strip() if answer.strip() else None


def measure_passes(setup: Setup, note: Note) -> None:
    """Forward and backward passes of images a second, and peak memory."""
    for name in setup.sizes.attacked:
        net = NormalizedNetwork(name).to(setup.device)
        for rows in setup.sizes.rows:
            for number_format in FORMATS:
                if number_format.startswith("tf32") and setup.device.type != "cuda":
                    continue
                note(f"{name} {number_format} {rows}", _measure(setup, name, net, rows, number_format))


def _measure(setup: Setup, name: str, net: nn.Module, rows: int, number_format: str) -> dict[str, Any]:
    layout = torch.channels_last if "channels_last" in number_format else torch.contiguous_format
    x = setup.images(name, rows).contiguous(memory_format=layout)
    with use_format(number_format, setup.device):
        net = net.to(memory_format=layout)
        repeat = 10 if rows <= 64 and setup.device.type == "cuda" else 1

        def run() -> None:
            for _ in range(repeat):
                compute_gradient(net, x)

        try:
            seconds = setup.clock.interleave({"": run}, setup.sizes.rounds)[""] / repeat
            peak = setup.clock.peak_bytes(lambda: compute_gradient(net, x))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return {"failed": "out of memory"}
    return {"passes_per_second": round(rows / seconds), "ms": round(1000 * seconds, 3), "peak_bytes": peak}


def compute_gradient(net: nn.Module, x: Tensor) -> Tensor:
    """A forward and a backward pass, with respect to the input."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(net(leaf).float().logsumexp(1).sum(), leaf)
    return grad


@contextmanager
def use_format(number_format: str, device: torch.device) -> Iterator[None]:
    """Within this, passes compute in this format."""
    tf32 = number_format.startswith("tf32")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    bf16 = torch.autocast(device.type, torch.bfloat16) if number_format.startswith("bf16") else nullcontext()
    try:
        with bf16:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
