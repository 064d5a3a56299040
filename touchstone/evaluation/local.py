"""One job without a server: the command line's way to the same `run` that workers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from touchstone.digests import digest_of
from touchstone.engine import Engine
from touchstone.evaluation.run import Finished, Report, run
from touchstone.images import decode, encode
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.methods import Kind, find, invalid_parameter
from touchstone.methods.compatibility import resolved
from touchstone.models.store import ZOO
from touchstone.models.zoo import manifest
from touchstone.settings import settings


def run_file(
    upload: bytes,
    kind: Kind,
    *,
    model: str,
    method: str,
    parameters: Mapping[str, Any],
    label: str | None = None,
    target: str | None = None,
    seed: int = 0,
    report: Report = lambda _progress, _metric: None,
) -> Finished:
    """Attack or certify the image in `upload`; raises the failures of bad input and of the method."""
    card = manifest(model)
    chosen = resolved(find(method, kind).parse(parameters), card, ZOO)
    png, image = canonical(upload)
    try:
        submission = Submission(
            kind=kind,
            method=method,
            model=ModelRef(id=card.id, digest=card.digest),
            image=image,
            parameters=chosen.model_dump(mode="json"),
            seed=seed,
            label=None if label is None else card.label(label),
            target=None if target is None else card.label(target, field="target"),
        )
    except ValidationError as error:
        raise invalid_parameter(error) from None
    engine = Engine(settings().device, settings().memory_budget)
    try:
        return run(submission, png, engine, report=report)
    finally:
        engine.stop()


def canonical(upload: bytes) -> tuple[bytes, ImageRef]:
    """The upload's pixels as a PNG without metadata, and its reference; raises as `images.decode` does."""
    decoded = decode(upload)
    png = encode(decoded.pixels)
    height, width, channels = decoded.pixels.shape
    image = ImageRef(
        digest=digest_of(png), width=width, height=height, channels=channels, conversions=decoded.conversions
    )
    return png, image
