"""Names of the streams that noise is drawn from: results of different streams are of different samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTACK_STREAM = "philox4x64-10, key (seed, row and attack), float32"
SAMPLE_STREAM = "philox4x64-10, key seed, counter (sample index, block), float32 by Box-Muller"

FORMER_SAMPLE_STREAM = "philox4x64-10, key (seed, sample index), float32"
"""Of counts that do not name theirs."""


def find_stream(result: Mapping[str, Any]) -> str | None:
    """The stream that a job's result names; None where it draws no noise, or is older than its name."""
    named = [result, result.get("sampling") or {}, result.get("smoothed") or {}]
    return next((one["stream"] for one in named if "stream" in one), None)
