"""Inference: a tensor of images in, logits out, and how both are stored as files. Never imports torch."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from touchstone.methods import Cost

OUTPUTS = "outputs.npy"
"""The file with the logits (N, K), float32."""

Stack = NDArray[np.float32] | NDArray[np.uint8]
"""Images of one size: float32 (N, C, h, w) in [0,1] at the network's own size, used as they are; or uint8
(N, H, W, C) at any size, preprocessed as the model's own pipeline preprocesses 8-bit files.
"""

_NONCE_BYTES = 16


class Infer(BaseModel):
    """The parameters of an inference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datatype: Literal["FP32", "UINT8", "BYTES"] = Field(description="What the client sent.")
    rows: int = Field(ge=1, description="Images.")

    def cost(self) -> Cost:
        """One forward pass for each image."""
        return Cost(forward=self.rows, backward=0)

    def rounds(self) -> int:
        """The rounds in which progress is counted."""
        return self.rows

    def completed_rounds(self, forward: int, _backward: int) -> int:
        """How many rounds these queries complete."""
        return forward


def pack(stacks: Sequence[Stack]) -> bytes:
    """The stacks as one file: npy after npy, and random bytes at the end.

    The random bytes make every file unique, so that it can be deleted without checking other requests.
    """
    nonce = np.frombuffer(secrets.token_bytes(_NONCE_BYTES), np.uint8)
    return to_npy([*stacks, nonce])


def unpack(file: bytes) -> list[Stack]:
    """What `pack` packed."""
    arrays = from_npy(file)
    return arrays[:-1]


def to_npy(arrays: Iterable[NDArray[Any]]) -> bytes:
    """Arrays one after the other, each as numpy's own format has it."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(file: bytes) -> list[NDArray[Any]]:
    """The arrays of such a file."""
    buffer, arrays = io.BytesIO(file), []
    while buffer.tell() < len(file):
        arrays.append(np.load(buffer, allow_pickle=False))
    return arrays
