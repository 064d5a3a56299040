"""From the nearest adversarial point to the nearest adversarial file."""

from __future__ import annotations

import torch
from torch import Tensor

from touchstone.engine.queries import Asking, Found, Saved
from touchstone.engine.rows import column
from touchstone.engine.threat import Case

REACHES = (1, 1.01, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.45, 1.7, 2, 2.4, 3, 4, 5, 6.5, 9, 13, 20, 40, 80)
"""How much longer a perturbation is made, in turn, until its rounded self meets the goal."""

HALVINGS = 3
SETTLING = len(REACHES) + HALVINGS
"""The most files that one row is asked about."""


def settled(case: Case, found: Found) -> Asking[Tensor]:
    """The found points as files (B, C, H, W) that still meet the goal, each as near as its direction allows.

    Rounding the smallest perturbations leaves nothing of them. So each is lengthened, as little as needed,
    until its rounded self meets the goal; rows for which no length does come back merely rounded.
    """
    d = found.x - case.threat.x0
    files = case.snap(found.x)
    enough = torch.zeros(len(case), dtype=torch.long, device=case.device)  # which of the reaches met the goal
    open_ = found.met.nonzero().flatten()
    for place, reach in enumerate(REACHES):
        if not len(open_):
            break
        tried = _moved(case[open_], d[open_], torch.full_like(case.threat.eps[open_], reach))
        met = yield from _meets(case[open_], tried)
        files = files.index_copy(0, open_[met], tried[met])
        enough[open_[met]] = place
        open_ = open_[~met]
    return (yield from _halved(case, d, files, enough))


def _halved(case: Case, d: Tensor, files: Tensor, enough: Tensor) -> Asking[Tensor]:
    """Between the length that was too short and the one that was enough, a better one by bisection."""
    reaches = torch.tensor(REACHES, dtype=d.dtype, device=d.device)
    rows = enough.nonzero().flatten()
    low, high = reaches[enough[rows] - 1], reaches[enough[rows]]
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
