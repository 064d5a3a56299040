"""The first queries to a remote model."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import torch
from torch import Tensor

from touchstone.engine.oracles.oracle import BATCH_TOLERANCE
from touchstone.engine.queries import Logits, PlanOf
from touchstone.errors import ModelUnusable
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RemoteProbe

QUERIES = 5
"""Rows that `probe_remote` sends, if none has to be sent again."""


def probe_remote(manifest: Manifest) -> PlanOf[RemoteProbe]:
    """Query a remote model on a few images: whether it answers as declared, and the same each time.

    Raises RemoteUnavailable, RemoteAnswer, QueryBudgetSpent, AddressRefused.
    """
    if manifest.remote is None:
        raise ModelUnusable(f"{manifest.id} is no remote model")
    one, two = _probe_images(manifest)
    yield Logits(one)  # resolves names and connects before the time is measured
    began = time.monotonic()
    first = (yield Logits(two)).logits
    seconds = time.monotonic() - began
    again = (yield Logits(two)).logits
    both = (yield Logits(torch.cat([one, two]))).logits
    repeat, batch = _max_abs(first - again), _max_abs(first - both[1:])
    return RemoteProbe(
        measured_at=datetime.now(UTC),
        queries=QUERIES,
        query_seconds=seconds,
        deterministic=repeat == 0,
        repeat_difference=repeat,
        batch_invariant=batch <= BATCH_TOLERANCE * max(1.0, _max_abs(first)),
        batch_difference=batch,
        decisions_only=manifest.remote.decisions_only,
    )


def _probe_images(manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Mid-gray and noise, in 8-bit levels, of the model's input size."""
    shape = (1, manifest.input.channels, manifest.input.height, manifest.input.width)
    noise = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return torch.full(shape, 128 / 255), noise / 255


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max())
