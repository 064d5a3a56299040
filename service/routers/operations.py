"""The state of the service: its queue, its jobs, its workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service import problems
from service.auth.permissions import reader
from service.dependencies import Tenant
from service.openapi import examples
from service.state.backend import TenantBackend
from touchstone.ledger import replies
from touchstone.ledger.records import Status
from touchstone.models import zoo

router = APIRouter(tags=["service"], dependencies=[reader])


class Queue(BaseModel):
    """The jobs that wait."""

    depth: int
    age: float = Field(description="Seconds that the oldest has waited.")


class Histogram(BaseModel):
    """Values since the worker started, in cumulative buckets as in Prometheus."""

    buckets: dict[str, int] = {}
    sum: float = 0
    count: int = 0


class Queries(BaseModel):
    """Images that the models of a worker processed since it started."""

    forward: int = 0
    backward: int = 0


class Loaded(BaseModel):
    """A model that a worker keeps loaded, all versions of it together."""

    id: str
    bytes: int


class Worker(BaseModel):
    """A worker's last heartbeat."""

    id: str
    seen_at: datetime
    host: str | None = None
    pid: int | None = None
    device: str | None = None
    running: int = Field(0, description="Jobs that run on it.")
    batch_rows: Histogram = Field(Histogram(), description="Images per pass.")
    step_seconds: Histogram = Field(Histogram(), description="Seconds per pass.")
    queries: Queries = Queries()
    models: list[Loaded] = []
    serves: list[str] | None = Field(None, description="The only models that it serves; null: all.")


class Storage(BaseModel):
    """The disk with the images and files."""

    free: int | None = Field(description="Bytes; null in a bucket, which has no limit.")
    reserve: int = Field(description="Bytes that stay free: with fewer, submissions are refused.")
    held: int = Field(
        description="Bytes of the caller's jobs and models, and those reserved for unfinished jobs."
    )
    limit: int | None = Field(description="The most bytes; null: no limit.")


class Operations(BaseModel):
    """The caller's jobs, and the workers, which all tenants share."""

    queue: Queue
    storage: Storage
    jobs: dict[Status, int] = Field(description="The number of jobs in each status.")
    workers: list[Worker] = Field(description="Those that are alive.")


_HISTOGRAM = {"buckets": {"1": 3, "8": 5, "+Inf": 7}, "sum": 60, "count": 7}
_EXAMPLE = {
    "queue": {"depth": 2, "age": 0.4},
    "storage": {"free": 48318382080, "reserve": 1073741824, "held": 73400320, "limit": 34359738368},
    "jobs": {"queued": 2, "running": 1, "succeeded": 12, "failed": 0, "canceled": 1},
    "workers": [
        {
            "id": "gpu1-4711-9f86d081",
            "seen_at": "2026-11-22T09:30:00.120000Z",
            "host": "gpu1",
            "pid": 4711,
            "device": "cuda:0",
            "running": 1,
            "batch_rows": _HISTOGRAM,
            "step_seconds": {"buckets": {"0.01": 6, "+Inf": 7}, "sum": 0.05, "count": 7},
            "queries": {"forward": 60, "backward": 40},
            "models": [{"id": "fashion-mnist-cnn", "bytes": 1543656}],
            "serves": None,
        }
    ],
}


@router.get(
    "/v1/operations",
    operation_id="get_operations",
    summary="The queue, the jobs and the workers",
    responses={200: examples.content(_EXAMPLE), **problems.responses()},
)
def get_operations(backend: Tenant) -> Operations:
    """The queued jobs, the number of jobs in each status, and the last heartbeat of each worker."""
    ledger, queue, known = backend.ledger, backend.ledger.queue(), _list_known_versions(backend)
    held, limit = ledger.storage()
    return Operations(
        queue=Queue(depth=queue.depth, age=queue.age),
        storage=Storage(
            free=backend.blobs.free_bytes(), reserve=backend.settings.disk_reserve, held=held, limit=limit
        ),
        jobs=ledger.count_by_status(),
        workers=[_show_worker(worker, known) for worker in ledger.workers.alive()],
    )


def _list_known_versions(backend: TenantBackend) -> set[tuple[str, str]]:
    """Versions that the tenant may see: those of the zoo, and its own."""
    own = backend.ledger.versions.all().values()
    return {(one.id, one.digest) for refs in own for one in refs} | {
        (manifest.id, manifest.digest) for manifest in zoo.manifests().values()
    }


def _show_worker(worker: replies.WorkerHeartbeat, known: Collection[tuple[str, str]]) -> Worker:
    told: dict[str, Any] = {name: worker.info[name] for name in Worker.model_fields if name in worker.info}
    loaded: Counter[str] = Counter()
    for one in worker.info.get("resident_models", ()):
        if (one["id"], one["digest"]) in known:
            loaded[one["id"]] += one["bytes"]
    models = [Loaded(id=name, bytes=size) for name, size in loaded.items()]
    return Worker.model_validate({**told, "id": worker.id, "seen_at": worker.seen_at, "models": models})
