"""What a remote model shows when it is asked for the first time."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import torch
from torch import Tensor

from touchstone.engine.certification.sampling import BATCH_TOLERANCE
from touchstone.engine.queries import Logits, PlanOf
from touchstone.errors import ModelUnusable
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RemoteProbe

QUERIES = 5
"""Rows that `probe_remote` asks about, if none has to be sent again."""


def probe_remote(manifest: Manifest) -> PlanOf[RemoteProbe]:
    """Ask a remote model about a handful of images: whether it answers, as declared, and the same each time.

    Raises RemoteUnavailable, RemoteAnswer, QueryBudgetSpent, AddressRefused.
    """
    if manifest.remote is None:
        raise ModelUnusable(f"{manifest.id} is no remote model")
    one, two = _probe_images(manifest)
    yield Logits(one)  # names are resolved and connections made before the time is taken
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
    """Mid-grey and noise, on the 8-bit lattice, at the size that the model takes."""
    shape = (1, manifest.input.channels, manifest.input.height, manifest.input.width)
    noise = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return torch.full(shape, 128 / 255), noise / 255


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max())
