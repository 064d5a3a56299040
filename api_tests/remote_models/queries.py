"""Queries to a remote model, and jobs on it."""

from __future__ import annotations

from typing import Any

import torch

from touchstone.engine import Engine, Logits, RemoteOracle
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.images import encode
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.models.manifest import Manifest

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


class FakeStore:
    """A model store with the manifests of a test."""

    def __init__(self, *manifests: Manifest) -> None:
        self.manifests = {manifest.digest: manifest for manifest in manifests}

    def manifest(self, _model: str, digest: str) -> Manifest:
        return self.manifests[digest]

    def of(self, _tenant: str) -> FakeStore:
        return self


def query_logits(oracle: RemoteOracle, x: torch.Tensor) -> torch.Tensor:
    [answer] = oracle.answer([Logits(x)])
    if isinstance(answer, Exception):
        raise answer
    return answer.logits


def run_on_image(
    engine: Engine, manifest: Manifest, image: Any, *, kind: str = "certificate", **more: Any
) -> JobOutcome:
    """Run a job on an image (C, H, W) in [0,1]."""
    engine.store.manifests[manifest.digest] = manifest  # type: ignore[attr-defined]
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    method = more.pop("method", "smoothing" if kind == "certificate" else "predict")
    calls = {name: more.pop(name) for name in ("deadline", "started", "report") if name in more}
    submission = Submission(
        kind=kind,  # type: ignore[arg-type]
        method=method,
        model=ModelRef(id=manifest.id, digest=manifest.digest),
        image=ImageRef(digest="sha256:" + "1" * 64, width=8, height=8, channels=3),
        parameters=more,
    )
    return run_job(submission, encode(pixels), engine, **calls)
