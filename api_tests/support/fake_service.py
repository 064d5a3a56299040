"""The API on a real socket, with a real ledger and a fake worker that does not compute."""

from __future__ import annotations

import base64
import io
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import numpy as np
from PIL import Image, ImageOps

from api_tests.support.wait import TIMEOUT_SECONDS
from service.app import create_app
from service.http.server import Server
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Artifact, Job, JobFailure, Progress, Timings
from touchstone.ledger.tenant_ledger import TenantLedger
from touchstone.methods.inference import to_npy
from touchstone.models import zoo
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs


def sample_manifest() -> Manifest:
    """A model of the zoo, always the same."""
    return next(iter(zoo.manifests().values()))


def gradient_image(width: int = 9, height: int = 8, mode: str = "RGB") -> Image.Image:
    """A small gradient, which is no single color and needs no file."""
    values = np.linspace(0, 255, width * height, dtype=np.uint8).reshape(height, width)
    return Image.fromarray(values).convert(mode)


def encode_image(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int = 9, height: int = 8, mode: str = "RGB") -> bytes:
    """A small PNG file."""
    return encode_image(gradient_image(width, height, mode))


def data_url(data: bytes) -> str:
    """The bytes as a data URL, as JSON requests carry them."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


@dataclass(frozen=True)
class FakeJob:
    """A job of the fake worker."""

    job: Job
    ledger: Ledger
    blobs: Blobs

    def report(self, done: int, total: int, **metric: float) -> None:
        """Report progress."""
        self.ledger.report(self.job.id, self.job.claims, Progress(done=done, total=total), metric or None)

    def finish(self, **outcome: Any) -> None:
        """End the job."""
        if outcome.get("result"):
            outcome["result"] = self.ledger.large_values.keep_result(outcome["result"])
        self.ledger.finish(self.job.id, self.job.claims, **outcome)

    def store(self, data: bytes, media_type: str = "image/png") -> Artifact:
        """Store a file of the job."""
        return Artifact(digest=self.blobs.put(data), media_type=media_type, size=len(data))


def infer(work: FakeJob) -> None:
    """Answer every image with logits that count up, one more for each image."""
    rows = work.job.submission.parameters["rows"]
    classes = len(zoo.find_manifest(work.job.submission.model.id).classes)
    logits = np.add.outer(np.arange(rows), np.arange(classes)).astype(np.float32)
    file = work.store(to_npy([logits]), "application/octet-stream")
    work.finish(status="succeeded", result={"rows": rows}, artifacts={"outputs.npy": file})


MODEL_PROBE = ModelProbe(
    measured_at=datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
    device="cpu",
    torch="2.13.0",
    load_seconds=0.1,
    bytes=1544,
    frozen=True,
    rows=64,
    gradient_rate=4000.0,
    single_rate=2000.0,
    forward_rate=9000.0,
    batch_invariant=True,
    logits_difference=0.0,
    gradient_difference=0.0,
    softmax=False,
    deterministic=True,
    forward_ms=0.1,
    gradient_ms=0.2,
    row_bytes=4096,
    gradient_error=1e-4,
    gradient_tolerance=0.05,
    gradient_agrees=True,
)
"""The probe of every model that the fake worker tries."""


def register_model(work: FakeJob, found: ModelProbe = MODEL_PROBE) -> None:
    """Register a model as usable."""
    card = Manifest.model_validate(work.job.submission.parameters).model_copy(update={"parameters": 386})
    TenantLedger.of(work.ledger, work.job.submission.tenant).versions.register(card, found)
    probe = found.model_dump(mode="json")
    work.finish(status="succeeded", result={"model": card.card(), "probe": probe})


def succeed(work: FakeJob) -> None:
    """Invert the image and call it adversarial; register a model as usable."""
    if work.job.submission.kind == "registration":
        register_model(work)
        return
    if work.job.submission.kind == "inference":
        infer(work)
        return
    original = Image.open(io.BytesIO(work.blobs.get(work.job.submission.source)))
    work.report(1, 2, loss=0.5)
    work.finish(
        status="succeeded",
        result={"outcome": "success", "success": True},
        timings=Timings(compute=0.01),
        artifacts={
            "adversarial.png": work.store(encode_image(ImageOps.invert(original))),
            "adversarial.npy": work.store(b"\x93NUMPY" + bytes(3_000_000), "application/octet-stream"),
        },
    )


def fail(work: FakeJob) -> None:
    """Fail because the model answered NaN."""
    problem = JobFailure(code="non_finite_output", detail="the model answered NaN", extra={"row": 0})
    work.finish(status="failed", error=problem)


class FakeWorker:
    """A thread that claims jobs like a worker, and handles each with its present behavior."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._blobs = open_blobs(settings)
        self._ledger = Ledger(url, settings, self._blobs)
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.dispatched: list[str] = []
        self._behavior: Callable[[FakeJob], None] = succeed
        self._resumed = threading.Event()
        self._resumed.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def dispatch(self, *jobs: str) -> None:
        """Have the thread claim jobs."""
        for job in jobs:
            self.dispatched.append(job)
            self._queue.put(job)

    @contextmanager
    def with_behavior(self, behavior: Callable[[FakeJob], None]) -> Iterator[None]:
        """Handle jobs this way during the block."""
        self._behavior = behavior
        try:
            yield
        finally:
            self._behavior = succeed

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Claim no jobs during the block: they stay queued."""
        self._resumed.clear()
        try:
            yield
        finally:
            self._resumed.set()

    def stop(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join()
        self._ledger.close()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._resumed.wait()
            claimed = self._ledger.claim(job, "pretender")
            if claimed is not None:
                whole = self._ledger.large_values.complete(claimed)
                self._behavior(FakeJob(whole, self._ledger, self._blobs))


@dataclass(frozen=True)
class Api:
    """A running service, a client of it, and its worker, ledger and settings."""

    client: httpx2.Client
    worker: FakeWorker
    ledger: Ledger
    settings: Settings
    port: int
    server: Server

    @property
    def origin(self) -> str:
        """The origin of the service, for browsers."""
        return f"http://127.0.0.1:{self.port}"

    def submit(
        self, path: str = "/v1/attacks/pgd", *, wait: int | None = 30, **fields: Any
    ) -> httpx2.Response:
        """Submit a small image as a form; `headers` are headers, other keywords are fields."""
        headers = fields.pop("headers", {})
        image = fields.pop("image", png())
        if wait is not None:
            headers = {"Prefer": f"wait={wait}", **headers}
        data = {"model": sample_manifest().id, **fields}
        return self.client.post(path, files={"image": ("a.png", image)}, data=data, headers=headers)

    def run_job(self, **fields: Any) -> dict[str, Any]:
        """Submit a job; returns it once it has ended."""
        response = self.submit(**fields)
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job


@contextmanager
def run_service(settings: Settings) -> Iterator[Api]:
    """Serve during the block."""
    assert settings.redis_url
    worker = FakeWorker(settings.redis_url, settings)
    app = create_app(settings, dispatch=worker.dispatch)
    server = Server(app, settings)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS) as client:
            yield Api(client, worker, app.state.backend.ledger, settings, port, server)
    finally:
        server.should_exit = True
        thread.join()
        worker.stop()


def assert_problem(
    response: httpx2.Response, status: int, code: str, field: str | None = None
) -> dict[str, Any]:
    """Check the problem of a response, and return it."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text[:500]
    )
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"], body.get("field")) == (status, code, field)
    assert body["detail"]
    assert len(response.content) < 20_000
    return body
