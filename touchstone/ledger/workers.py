"""Workers that are alive, by their heartbeats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from touchstone.ledger.codec import decode_time
from touchstone.ledger.replies import WorkerHeartbeat
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

EXPIRY_LEASES = 3


def worker_expiry_ms(settings: Settings) -> int:
    """Milliseconds without a heartbeat after which a worker is removed."""
    return round(EXPIRY_LEASES * settings.lease * 1000)


class Workers:
    """Heartbeats of workers, which also name the models that have workers of their own."""

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        self._scripts = scripts
        self._expiry_ms = worker_expiry_ms(settings)

    def heartbeat(self, worker: str, info: Mapping[str, Any], served_models: Iterable[str] = ()) -> None:
        """Record a heartbeat, with the worker's figures and its models if it does not serve all."""
        self._run(worker, json.dumps(info) if info else "{}", *served_models)

    def remove(self, worker: str) -> None:
        """Remove a worker that stops."""
        self._run(worker, "")

    def alive(self) -> list[WorkerHeartbeat]:
        """Workers with a heartbeat within three leases."""
        return [
            WorkerHeartbeat(name, json.loads(info), decode_time(at)) for name, info, at in self._run("", "")
        ]

    def _run(self, worker: str, info: str, *served_models: str) -> Any:
        return self._scripts.run("jobs/beat", worker, info, self._expiry_ms, *served_models)
