"""How a model gets ready to be asked: loaded onto a device, and measured."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from touchstone.engine.device import keep_blocks
from touchstone.engine.goals import CrossEntropy, Goal
from touchstone.engine.oracle import MOST_ROWS, Oracle
from touchstone.engine.queries import Gradient
from touchstone.engine.resize import Sight
from touchstone.models.loading import load_module
from touchstone.models.manifest import Manifest

LEAST_ROWS = 8
"""A machine that was busy while it measured must not leave the model asked one row at a time."""

CLEARLY_WORSE = 0.85
"""Share of the best rate at which larger batches are not tried."""


def oracle_of(card: Manifest, device: torch.device) -> Oracle:
    """Load a manifest's network onto a device and measure how many rows it likes at once."""
    keep_blocks()
    oracle = Oracle(load_module(card).to(device), Sight.of(card, device), device)
    return replace(oracle, rows=best_rows(oracle, (card.input.channels, card.input.height, card.input.width)))


def size_in_bytes(oracle: Oracle) -> int:
    """Memory that the network's weights take."""
    tensors = [*oracle.module.parameters(), *oracle.module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def best_rows(oracle: Oracle, shape: tuple[int, int, int], *, patience: float = 1.5) -> int:
    """The rows per pass at which gradients of images (C, H, W) are about as cheap as they get.

    Doubles the batch until that has clearly become worse, or for `patience` seconds. Warms the model up, too.
    """
    _rate(oracle, shape, 1)
    until = time.perf_counter() + patience
    rates = {1: _rate(oracle, shape, 1)}
    while max(rates) < MOST_ROWS and time.perf_counter() < until:
        rows = 2 * max(rates)
        rates[rows] = _rate(oracle, shape, rows)
        if rates[rows] < CLEARLY_WORSE * max(rates.values()):
            break
    return max(LEAST_ROWS, max(rates, key=rates.__getitem__))


def _rate(oracle: Oracle, shape: tuple[int, int, int], rows: int) -> float:
    x = torch.full((rows, *shape), 0.5, device=oracle.device)
    none = torch.zeros(rows, dtype=torch.bool, device=oracle.device)
    query = Gradient(x, CrossEntropy(Goal(none.long(), none)))
    return rows / min(_seconds(oracle, query) for _ in range(2))


def _seconds(oracle: Oracle, query: Gradient) -> float:
    began = time.perf_counter()
    float(oracle.answer([query])[0].logits.sum())  # waits for the device
    return time.perf_counter() - began
