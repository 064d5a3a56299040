"""Asking a remote model, and running jobs on it."""

from __future__ import annotations

from typing import Any

import torch

from touchstone.engine import Engine, Logits, RemoteOracle
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.images import encode
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.models.manifest import Manifest

PNG = {"request": {"image": "data:image/png;base64,$image_png_base64"}, "answer": "scores", "batch": 1}


class Shelf:
    """Has whatever it is asked for."""

    def __init__(self, *cards: Manifest) -> None:
        self.cards = {card.digest: card for card in cards}

    def manifest(self, _model: str, digest: str) -> Manifest:
        return self.cards[digest]

    def of(self, _tenant: str) -> Shelf:
        return self


def query_logits(oracle: RemoteOracle, x: torch.Tensor) -> torch.Tensor:
    [answer] = oracle.answer([Logits(x)])
    if isinstance(answer, Exception):
        raise answer
    return answer.logits


def run_job(
    engine: Engine, card: Manifest, image: Any, *, kind: str = "certificate", **more: Any
) -> JobOutcome:
    """Run a job on an image (C, H, W) in [0,1]."""
    engine.store.cards[card.digest] = card  # type: ignore[attr-defined]
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    method = more.pop("method", "smoothing" if kind == "certificate" else "predict")
    calls = {name: more.pop(name) for name in ("deadline", "started", "report") if name in more}
    submission = Submission(
        kind=kind,  # type: ignore[arg-type]
        method=method,
        model=ModelRef(id=card.id, digest=card.digest),
        image=ImageRef(digest="sha256:" + "1" * 64, width=8, height=8, channels=3),
        parameters=more,
    )
    return run_job(submission, encode(pixels), engine, **calls)
