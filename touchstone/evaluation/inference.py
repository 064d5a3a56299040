"""Inference: the logits of many images at once, as a client of a model server sends them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from touchstone.engine.device import to_device
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.quantization import from_pixels
from touchstone.engine.queries import FileLogits, InputLogits, Logits, PlanOf
from touchstone.methods.inference import Stack

CHUNK = 64
"""Images of a query: only so many become floats at a time, and a job can end between two queries."""


def infer(stacks: Sequence[Stack], oracle: Oracle) -> PlanOf[NDArray[np.float32]]:
    """Logits (N, K) of all images in order; see `touchstone.methods.inference` for what a stack is."""
    parts = []
    for stack in stacks:
        for start in range(0, len(stack), CHUNK):
            answer = yield _make_query(stack[start : start + CHUNK], oracle.device)
            parts.append(answer.logits.cpu().float())
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def _make_query(images: Stack, device: torch.device) -> Logits:
    tensor = to_device(device, torch.from_numpy(images.copy()))
    if tensor.dtype == torch.uint8:
        return FileLogits(from_pixels(tensor).permute(0, 3, 1, 2))
    return InputLogits(tensor)
