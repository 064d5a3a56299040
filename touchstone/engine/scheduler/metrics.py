"""Metrics of the engine's passes, as cumulative histograms for the dashboard and for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict
from typing import Any

from touchstone.engine.scheduler.task import QueryCount

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class CumulativeHistogram:
    """Counts of values up to each bound, their sum and their number."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> dict[str, Any]:
        """Cumulative counts by upper bound, sum and count, as Prometheus has them."""
        running, buckets = 0, {}
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            running += count
            buckets[str(bound)] = running
        return {"buckets": buckets, "sum": self._sum, "count": running}


class EngineMetrics:
    """Sizes and durations of the engine's passes, and how many queries they answered."""

    def __init__(self) -> None:
        self._rows, self._seconds = CumulativeHistogram(ROWS), CumulativeHistogram(SECONDS)
        self._queries = QueryCount()

    def observe(self, queries: QueryCount, seconds: float) -> None:
        """Count one pass."""
        self._rows.observe(queries.forward)
        self._seconds.observe(seconds)
        self._queries.forward += queries.forward
        self._queries.backward += queries.backward

    def snapshot(self) -> dict[str, Any]:
        """All metrics as JSON."""
        return {
            "batch_rows": self._rows.snapshot(),
            "step_seconds": self._seconds.snapshot(),
            "queries": asdict(self._queries),
        }
