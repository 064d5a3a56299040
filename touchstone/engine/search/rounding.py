"""From the nearest adversarial point to the nearest adversarial file."""

from __future__ import annotations

import torch
from torch import Tensor

from touchstone.engine.queries import FileLogits, Found, PlanOf
from touchstone.engine.rows import column
from touchstone.engine.threat import Case

STRETCHES = (1, 1.01, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.45, 1.7, 2, 2.4, 3, 4, 5, 6.5, 9, 13, 20, 40, 80)
"""Factors by which a perturbation is lengthened, in turn, until the rounded image meets the goal."""

HALVINGS = 3
MAX_ROUNDING_QUERIES = len(STRETCHES) + HALVINGS
"""The most queries for one row."""


def round_to_success(case: Case, found: Found) -> PlanOf[Tensor]:
    """The found points as files (B, C, H, W) that still meet the goal, each as near as its direction allows.

    Rounding erases the smallest perturbations. So each is lengthened, as little as needed, until the rounded
    image meets the goal; rows for which no length does are returned merely rounded.
    """
    d = found.x - case.threat.x0
    files = case.snap(found.x)
    # The index of the stretch that met the goal.
    enough = torch.zeros(len(case), dtype=torch.long, device=case.device)
    open_ = found.met.nonzero().flatten()
    for place, stretch in enumerate(STRETCHES):
        if not len(open_):
            break
        tried = _stretch_to(case[open_], d[open_], torch.full_like(case.threat.eps[open_], stretch))
        met = yield from _check_goal(case[open_], tried)
        files = files.index_copy(0, open_[met], tried[met])
        enough[open_[met]] = place
        open_ = open_[~met]
    return (yield from _bisect_stretch(case, d, files, enough))


def _bisect_stretch(case: Case, d: Tensor, files: Tensor, enough: Tensor) -> PlanOf[Tensor]:
    """Between the length that was too short and the one that was enough, a better one by bisection."""
    stretches = torch.tensor(STRETCHES, dtype=d.dtype, device=d.device)
    rows = enough.nonzero().flatten()
    low, high = stretches[enough[rows] - 1], stretches[enough[rows]]
    for _ in range(HALVINGS if len(rows) else 0):
        middle = (low + high) / 2
        tried = _stretch_to(case[rows], d[rows], middle)
        met = yield from _check_goal(case[rows], tried)
        files = files.index_copy(0, rows[met], tried[met])
        low, high = torch.where(met, low, middle), torch.where(met, middle, high)
    return files


def _stretch_to(case: Case, d: Tensor, stretch: Tensor) -> Tensor:
    return case.snap((case.threat.x0 + column(stretch, d) * d).clamp(0, 1))


def _check_goal(case: Case, files: Tensor) -> PlanOf[Tensor]:
    return case.goal.is_met((yield FileLogits(files)).logits)
