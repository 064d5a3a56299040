"""From a body to a submission: fields checked, names resolved, the image decoded and made canonical."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.submissions import bodies
from service.submissions.bodies import Received
from service.submissions.webhook_urls import WEBHOOK, Url, check_receiver
from touchstone.errors import CostTooHigh, InvalidParameter, JobConflict, UnknownModel
from touchstone.fields import Seed, parse_fraction, refuse_unknown
from touchstone.ledger.quotas import Needs
from touchstone.ledger.records import ImageRef, JobKind, ModelRef, Submission, leaves_of
from touchstone.methods import Method, cost_of, invalid_parameter
from touchstone.methods import find as find_method
from touchstone.methods.compatibility import check_fit, resolved
from touchstone.methods.prediction import Predict
from touchstone.models.manifest import Manifest
from touchstone.models.store import Shelf, find
from touchstone.sandbox.decoder_pool import Decoders
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs

LONGEST_DEADLINE = 3600
LONGEST_NAME = 64 + len("@sha256:") + 64


def _index_or_name(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("expected a class's index or name")
    return str(value)


Seconds = Annotated[
    float, Field(gt=0, le=LONGEST_DEADLINE, allow_inf_nan=False), BeforeValidator(parse_fraction)
]
"""A time to run."""

Class = Annotated[
    str,
    BeforeValidator(_index_or_name),
    Field(min_length=1, max_length=200),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1, "maxLength": 200}]}
    ),
]
"""A class by its index or its name, as text."""


class Asked(BaseModel):
    """What every submission may say besides the method's own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1,
        max_length=LONGEST_NAME,
        description="A model's id, as `GET /v1/models` lists them: its current version. `id@digest` names "
        "a certain one; twelve hexadecimal digits do.",
    )
    seed: Seed = Field(0, description="Equal seeds give equal noise.")
    execution: Literal["batched", "deterministic"] = Field(
        "batched",
        description="`deterministic` runs the job alone and gives the same bytes each time.",
    )
    deadline: Seconds | None = Field(None, description="Seconds the job may run, at most an hour.")
    webhook: Url | None = WEBHOOK


class AskedOfAttack(Asked):
    """What the submission of an attack may say besides."""

    label: Class | None = Field(
        None,
        description="The true class, as index or name; the model's own prediction where it is left out.",
        examples=[7],
    )
    target: Class | None = Field(
        None,
        description="The class to reach, as index or name; left out, any other class will do.",
        examples=[3],
    )


class AskedOfCost(BaseModel):
    """What the question for a cost may say besides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_NAME,
        description="A model's id: the seconds are estimated for it.",
        examples=["fashion-mnist-cnn"],
    )


A = TypeVar("A", bound=BaseModel)


@dataclass
class Prepared:
    """A submission, and until it is stored the canonical PNG or the file that it points to."""

    submission: Submission
    source: bytes | Path | None
    passes: int = 0
    """The most that the job may ask the model."""

    def needs(self) -> Needs:
        """What the job takes of its tenant's allowance; to be asked before `keep`."""
        source = self.source
        size = source.stat().st_size if isinstance(source, Path) else len(source or b"")
        return Needs(self.passes, size, leaves_of(self.submission))

    def keep(self, blobs: Blobs) -> None:
        """Store what it points to, and let go of it: the client may wait for the job for long."""
        if isinstance(self.source, Path):
            blobs.put_file(self.source, self.submission.source)
        elif self.source is not None:
            blobs.put(self.source)
        self.source = None

    def digest(self) -> str:
        """Tells equal requests from different ones, however they were written."""
        return hashlib.sha256(self.submission.model_dump_json().encode()).hexdigest()


def method_submission(
    method: type[Method], received: Received, *, settings: Settings, shelf: Shelf, decoders: Decoders
) -> Prepared:
    """Check the submission of an attack or a certificate."""
    body = bodies.parse(received, settings.upload_limit)
    asked, parameters = _split(body.fields, asked_of(method), method, method.info.name)
    chosen = method.parse(parameters)
    manifest = find(shelf, asked.model)
    check_fit(chosen, manifest)
    check_receiver(asked.webhook, settings)
    chosen = resolved(chosen, manifest, shelf)
    label, target = _classes(method, manifest, asked) if isinstance(asked, AskedOfAttack) else (None, None)
    passes = check_cost(chosen, settings.cost_limit)
    return _prepared(
        decoders.canonical(body.image),
        asked,
        manifest,
        passes=passes,
        kind=chosen.kind,
        method=method.info.name,
        parameters=chosen.model_dump(mode="json"),
        label=label,
        target=target,
    )


def asked_of(method: type[Method]) -> type[Asked]:
    """What a submission may say besides the method's parameters; a certificate has no use for classes."""
    return AskedOfAttack if method.kind == "attack" else Asked


def prediction(received: Received, *, settings: Settings, shelf: Shelf, decoders: Decoders) -> Prepared:
    """Check the submission of a prediction."""
    body = bodies.parse(received, settings.upload_limit)
    asked, parameters = _split(body.fields, Asked, Predict, "predictions")
    manifest = find(shelf, asked.model)
    chosen = _predict(parameters, manifest)
    check_fit(chosen, manifest)
    check_receiver(asked.webhook, settings)
    passes = check_cost(chosen, settings.cost_limit)
    return _prepared(
        decoders.canonical(body.image),
        asked,
        manifest,
        passes=passes,
        kind="prediction",
        method="predict",
        parameters=chosen.parameters(),
    )


Costly = tuple[Method | Predict, Manifest | None]
"""What would be asked, and of which model where one was named."""


def costly_method(method: type[Method], fields: Mapping[str, Any], shelf: Shelf) -> Costly:
    """Check what a job of a method would be asked with, as at its submission."""
    asked, parameters = _split(fields, AskedOfCost, method, f"the cost of {method.info.name}", files=())
    chosen = method.parse(parameters)
    manifest = find(shelf, asked.model) if asked.model else None
    if manifest is not None:
        check_fit(chosen, manifest)
    return chosen, manifest


def costly_prediction(fields: Mapping[str, Any], shelf: Shelf) -> Costly:
    """Check what a prediction would be asked with, as at its submission."""
    asked, parameters = _split(fields, AskedOfCost, Predict, "the cost of predictions", files=())
    manifest = find(shelf, asked.model) if asked.model else None
    chosen = _predict(parameters, manifest)
    if manifest is not None:
        check_fit(chosen, manifest)
    return chosen, manifest


def _split(
    fields: Mapping[str, Any],
    common: type[A],
    own: type[BaseModel],
    name: str,
    *,
    files: tuple[str, ...] = ("image",),
) -> tuple[A, dict[str, Any]]:
    known = [*files, *common.model_fields, *own.model_fields]
    refuse_unknown(fields, known, name)
    shared = {field: value for field, value in fields.items() if field in common.model_fields}
    try:
        asked = common.model_validate(shared)
    except ValidationError as error:
        raise invalid_parameter(error) from None
    return asked, {field: value for field, value in fields.items() if field not in shared}


def _classes(method: type[Method], manifest: Manifest, asked: AskedOfAttack) -> tuple[int | None, int | None]:
    if asked.target is not None and not method.info.targeted:
        raise InvalidParameter(f"target: {method.info.name} cannot be targeted; leave it out", field="target")
    label = None if asked.label is None else manifest.label(asked.label)
    target = None if asked.target is None else manifest.label(asked.target, field="target")
    if label is not None and label == target:
        raise InvalidParameter("target: the same class as label; choose another one to reach", field="target")
    return label, target


def check_cost(method: Method | Predict, limit: int) -> int:
    """The passes that the job may ask for at most; raises `CostTooHigh` where one job may not."""
    cost = cost_of(method)
    if cost.total > limit:
        raise CostTooHigh(
            f"the job may ask the model {cost.total:,} times; at most {limit:,} are allowed:"
            " take fewer steps, restarts or samples",
            cost={"forward": cost.forward, "backward": cost.backward, "total": cost.total},
            limit=limit,
        )
    return cost.total


def passes_of(asked: Submission) -> int:
    """The passes that a job which was asked for once before may ask for at most."""
    known: type[Method | Predict] = Predict if asked.kind == "prediction" else find_method(asked.method)
    return cost_of(known.model_validate(asked.parameters)).total


def check_model(asked: Submission, shelf: Shelf) -> None:
    """Raise `JobConflict` where the version that a job ran on is there no longer."""
    try:
        shelf.manifest(asked.model.id, asked.model.digest)
    except UnknownModel:
        raise JobConflict(f"the model {asked.model.id} is no longer the one that the job ran on") from None


def _predict(parameters: Mapping[str, Any], manifest: Manifest | None) -> Predict:
    try:
        chosen = Predict.model_validate(parameters)
    except ValidationError as error:
        raise invalid_parameter(error) from None
    if manifest is None:
        return chosen
    classes = len(manifest.classes)
    if "top" in parameters and chosen.top > classes:
        raise InvalidParameter(f"top: {manifest.id} has {classes} classes, not {chosen.top}", field="top")
    return chosen.model_copy(update={"top": min(chosen.top, classes)})


def _prepared(
    canonical: tuple[bytes, ImageRef],
    asked: Asked,
    manifest: Manifest,
    *,
    passes: int,
    kind: JobKind,
    method: str,
    parameters: dict[str, Any],
    label: int | None = None,
    target: int | None = None,
) -> Prepared:
    png, image = canonical
    submission = Submission(
        kind=kind,
        method=method,
        model=ModelRef(id=manifest.id, digest=manifest.digest),
        image=image,
        parameters=parameters,
        seed=asked.seed,
        label=label,
        target=target,
        execution=asked.execution,
        deadline=asked.deadline,
        webhook=asked.webhook,
    )
    return Prepared(submission, png, passes)
