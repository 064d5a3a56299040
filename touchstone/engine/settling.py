"""From the nearest adversarial point to the nearest adversarial file."""

from __future__ import annotations

import torch
from torch import Tensor

from touchstone.engine.queries import Asking, Found, Saved
from touchstone.engine.rows import column
from touchstone.engine.threat import Case

GROWTH = 1.25
GROWTHS = 20  # up to about 90 times the distance
HALVINGS = 3
SETTLING = GROWTHS + 1 + HALVINGS
"""The most files that one row is asked about."""


def settled(case: Case, found: Found) -> Asking[Tensor]:
    """The found points as files (B, C, H, W) that still meet the goal, each as near as its direction allows.

    Rounding the smallest perturbations leaves nothing of them. So each is lengthened, as little as needed,
    until its rounded self meets the goal; rows for which no length does come back merely rounded.
    """
    d = found.x - case.threat.x0
    files = case.snap(found.x)
    reach = torch.ones(len(case), device=case.device)
    open_ = found.met.nonzero().flatten()
    for attempt in range(GROWTHS + 1):
        if not len(open_):
            break
        tried = _moved(case[open_], d[open_], reach[open_])
        met = yield from _meets(case[open_], tried)
        files = files.index_copy(0, open_[met], tried[met])
        open_ = open_[~met]
        if attempt < GROWTHS:
            reach = reach.index_copy(0, open_, reach[open_] * GROWTH)
    grown = found.met & (reach > 1)
    grown[open_] = False
    return (yield from _halved(case, d, files, reach, grown.nonzero().flatten()))


def _halved(case: Case, d: Tensor, files: Tensor, reach: Tensor, rows: Tensor) -> Asking[Tensor]:
    """Between the length that was too short and the one that was enough, a better one by bisection."""
    low, high = reach[rows] / GROWTH, reach[rows]
    for _ in range(HALVINGS if len(rows) else 0):
        middle = (low + high) / 2
        tried = _moved(case[rows], d[rows], middle)
        met = yield from _meets(case[rows], tried)
        files = files.index_copy(0, rows[met], tried[met])
        low, high = torch.where(met, low, middle), torch.where(met, middle, high)
    return files


def _moved(case: Case, d: Tensor, reach: Tensor) -> Tensor:
    return case.snap((case.threat.x0 + column(reach, d) * d).clamp(0, 1))


def _meets(case: Case, files: Tensor) -> Asking[Tensor]:
    return case.goal.met((yield Saved(files)).logits)
