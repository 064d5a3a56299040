"""Metrics for Prometheus: those of requests, and those read from the ledger."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from touchstone.errors import LedgerUnavailable
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.replies import WorkerHeartbeat
from touchstone.models import zoo

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable for the folder in which several processes add up what they count."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class RequestMetrics:
    """A registry with the durations of requests by route, of all API processes where there are several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        several = METRICS_FOLDER in os.environ
        if several:
            MultiProcessCollector(self.registry)  # type: ignore[no-untyped-call]
        self._histogram = Histogram(
            "touchstone_http_request_seconds",
            "Time from a request to the end of its answer.",
            ("route", "method", "status"),
            buckets=_BUCKETS,
            registry=None if several else self.registry,
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._histogram.labels(route, method, str(status)).observe(seconds)


class ServiceCollector(Collector):
    """Metrics from the ledger and the workers' heartbeats, read at each scrape."""

    def __init__(self, ledger: Ledger, free: Callable[[], int | None]) -> None:
        self._ledger = ledger
        self._free = free

    def describe(self) -> list[Metric]:
        """Nothing: registration must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The current metrics; while the ledger is unavailable, only that it is."""
        if (free := self._free()) is not None:
            yield _gauge("touchstone_storage_free_bytes", "Room on the disk that files lie on.", free)
        try:
            queue, counts, workers = (
                self._ledger.queue(),
                self._ledger.count_by_status(),
                self._ledger.workers.alive(),
            )
            deliveries = self._ledger.outbox.count_by_status()
        except LedgerUnavailable:
            yield _gauge("touchstone_ledger_up", "Whether the ledger answers.", 0)
            return
        yield _gauge("touchstone_ledger_up", "Whether the ledger answers.", 1)
        yield _gauge("touchstone_queue_depth", "Jobs that wait.", queue.depth)
        yield _gauge("touchstone_queue_oldest_seconds", "Age of the oldest job that waits.", queue.age)
        yield _gauge("touchstone_workers", "Workers that are alive.", len(workers))
        yield _by_status("touchstone_jobs", "Jobs by status.", counts)
        yield _by_status("touchstone_deliveries", "Deliveries of webhooks by status.", deliveries)
        yield _histogram("touchstone_batch_rows", "Rows of a batch.", workers, "batch_rows")
        yield _histogram("touchstone_step_seconds", "Time that a batch takes.", workers, "step_seconds")
        yield _queries(workers)
        yield _resident_models(workers)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_status(name: str, text: str, counts: Mapping[Any, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("status",))
    for status, count in counts.items():
        family.add_metric((status,), count)
    return family


def _histogram(name: str, text: str, workers: list[WorkerHeartbeat], key: str) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("worker",))
    for worker in workers:
        data = worker.info.get(key)
        if data:
            buckets = sorted(((float(le), n) for le, n in data["buckets"].items()), key=lambda pair: pair[0])
            counts = [(f"{le:g}", n) for le, n in buckets if le != float("inf")]
            family.add_metric((worker.id,), [*counts, ("+Inf", data["count"])], data["sum"])
    return family


def _queries(workers: list[WorkerHeartbeat]) -> Metric:
    family = CounterMetricFamily(
        "touchstone_queries", "Rows that the models were asked for.", labels=("worker", "pass")
    )
    for worker in workers:
        for direction, count in worker.info.get("queries", {}).items():
            family.add_metric((worker.id, direction), count)
    return family


def _resident_models(workers: list[WorkerHeartbeat]) -> Metric:
    family = GaugeMetricFamily(
        "touchstone_resident_models", "Models kept loaded.", labels=("worker", "model")
    )
    for worker in workers:
        loaded = Counter(_public_name(one["id"]) for one in worker.info.get("resident_models", ()))
        for model, count in loaded.items():
            family.add_metric((worker.id, model), count)
    return family


def _public_name(model: str) -> str:
    """The label of a model: without the names that users gave."""
    return model if model in zoo.manifests() else "registered"
