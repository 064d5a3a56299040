"""One job without a server: the command line runs the same `run_job` as workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from touchstone.digests import digest_of
from touchstone.engine import Engine
from touchstone.evaluation.run import JobOutcome, Report, run_job
from touchstone.images import decode, encode
from touchstone.ledger.records import ImageRef, ModelRef, Submission
from touchstone.methods import Kind, find, invalid_parameter
from touchstone.methods.compatibility import check_target, resolve_parameters
from touchstone.models.store import ZOO
from touchstone.models.zoo import find_manifest
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
) -> JobOutcome:
    """Attack or certify the image in `upload`; raises the failures of bad input and of the method."""
    model_manifest = find_manifest(model)
    chosen = resolve_parameters(find(method, kind).parse(parameters), model_manifest, ZOO)
    index, aim = (
        None if one is None else model_manifest.resolve_label(one, field=field)
        for one, field in ((label, "label"), (target, "target"))
    )
    check_target(index, aim)
    png, image = canonicalize(upload)
    try:
        submission = Submission(
            kind=kind,
            method=method,
            model=ModelRef(id=model_manifest.id, digest=model_manifest.digest),
            image=image,
            parameters=chosen.model_dump(mode="json"),
            seed=seed,
            label=index,
            target=aim,
        )
    except ValidationError as error:
        raise invalid_parameter(error) from None
    engine = Engine(settings().device, settings().memory_budget)
    try:
        return run_job(submission, png, engine, report=report)
    finally:
        engine.stop()


def canonicalize(upload: bytes) -> tuple[bytes, ImageRef]:
    """The upload's pixels as a PNG without metadata, and its reference; raises as `images.decode` does."""
    decoded = decode(upload)
    png = encode(decoded.pixels)
    height, width, channels = decoded.pixels.shape
    image = ImageRef(
        digest=digest_of(png), width=width, height=height, channels=channels, conversions=decoded.conversions
    )
    return png, image
