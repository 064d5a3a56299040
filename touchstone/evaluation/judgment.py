"""Whether an attack succeeded: decided from the images that are handed out, whatever the attack says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.goals import Margin, are_finite
from touchstone.engine.quantization import LEVELS, is_within
from touchstone.engine.queries import FileLogits, Logits, PlanOf
from touchstone.engine.rows import Rows, column
from touchstone.engine.threat import Case, Threat

FLOAT_STEP = 2.0**-24
"""The most by which float32 rounds a value in [0,1]."""
RADIUS_TOLERANCE = 1e-5
"""The relative error of a projection onto a ball in float32."""
LOGIT_TOLERANCE = 1e-4
"""By how much, as a share of the largest logit, a margin may change with the other images of a pass."""


@dataclass(frozen=True)
class Judgment(Rows):
    """What the images are, per row."""

    images: Tensor  # (B, C, H, W) as judged, or the originals where there is nothing to judge
    logits: Tensor  # (B, K)
    distance: Tensor  # (B,) float64, in the threat's norm
    success: Tensor  # (B,) bool
    kept: Tensor  # (B,) bool: the images are those that were given, not the originals in their place


def judge_images(case: Case, images: Tensor, clean: Tensor, claimed: Tensor) -> PlanOf[Judgment]:
    """Look at the images (B, C, H, W), files where the case quantizes, and say which of them succeed.

    A success is finite, has finite logits that meet the goal, and is within the radius of its original: files
    up to a relative error of 1e-9, since their distance is exact; others up to what float32 makes of a
    projection. Of these, those that the attack `claimed` (B,) to meet the goal also do where rounding in
    another pass takes the margin below 0. Images or logits that are not finite are nothing to hand out: the
    originals, with their logits `clean` (B, K), stand in for them.
    """
    kept = images.flatten(1).isfinite().all(1)
    images = _where_rows(kept, images, case.threat.x0)
    query = FileLogits if case.quantize else Logits
    logits = (yield query(images, allow_non_finite=True)).logits
    kept = kept & are_finite(logits)
    images, logits = _where_rows(kept, images, case.threat.x0), _where_rows(kept, logits, clean)
    distance = measure_distance(case.threat, images, files=case.quantize)
    met = case.goal.is_met(logits) if case.quantize else _nearly_met(case, logits, claimed)
    success = met & _is_allowed(case.threat, distance, files=case.quantize)
    return Judgment(images, logits, distance, success, kept)


def measure_distance(threat: Threat, images: Tensor, *, files: bool) -> Tensor:
    """The distance (B,) of each image from its original, in float64; that of files in whole levels."""
    moved = images.to(torch.float64, copy=True).sub_(threat.x0.double())
    return threat.norm.size(moved.mul_(LEVELS).round_().div_(LEVELS) if files else moved)


def are_allowed(threat: Threat, images: Tensor, *, files: bool) -> Tensor:
    """Which images are finite and within the radius of their originals, (B,) bool; see `judge_images`."""
    return _is_allowed(threat, measure_distance(threat, images, files=files), files=files)


def _is_allowed(threat: Threat, distance: Tensor, *, files: bool) -> Tensor:
    if files:
        return is_within(distance, threat.eps)
    rounding = FLOAT_STEP * threat.norm.size(torch.ones_like(threat.x0))
    return is_within(distance, threat.eps * (1 + RADIUS_TOLERANCE) + rounding)


def _nearly_met(case: Case, logits: Tensor, claimed: Tensor) -> Tensor:
    tolerance = LOGIT_TOLERANCE * logits.abs().amax(1).clamp_min(1)
    return case.goal.is_met(logits) | (claimed & (Margin(case.goal)(logits) >= -tolerance))


def _where_rows(mask: Tensor, ours: Tensor, others: Tensor) -> Tensor:
    """Of two tensors of rows the first where the mask (B,) is set."""
    return ours.where(column(mask, ours), others)
