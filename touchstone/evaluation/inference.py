"""Inference: the logits of many images at once, as a client of a model server sends them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from touchstone.engine.device import to_device
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.pieces import rows_of_piece
from touchstone.engine.quantization import from_pixels
from touchstone.engine.queries import FileLogits, InputLogits, Logits, PlanOf
from touchstone.methods.inference import Stack

CHUNK = 64
"""Images of a query, fewer of large ones: only so many become floats at a time, and a job can end between two
queries.
"""


def infer(stacks: Sequence[Stack], oracle: Oracle) -> PlanOf[NDArray[np.float32]]:
    """Logits (N, K) of all images in order; see `touchstone.methods.inference` for what a stack is."""
    parts = []
    for stack in stacks:
        chunk = min(CHUNK, rows_of_piece(math.prod(stack.shape[1:])))
        for start in range(0, len(stack), chunk):
            answer = yield _make_query(stack[start : start + chunk], oracle.device)
            parts.append(answer.logits.cpu().float())
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def _make_query(images: Stack, device: torch.device) -> Logits:
    tensor = to_device(device, torch.from_numpy(images.copy()))
    if tensor.dtype == torch.uint8:
        return FileLogits(from_pixels(tensor).permute(0, 3, 1, 2))
    return InputLogits(tensor)
