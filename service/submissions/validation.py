"""From a body to a submission: fields checked, names resolved, the image decoded and made canonical."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.submissions import bodies
from service.submissions.bodies import RawBody
from service.submissions.webhook_urls import WEBHOOK, Url, check_webhook_url
from touchstone.errors import CostTooHigh, InvalidParameter, JobConflict, UnknownModel
from touchstone.fields import Seed, parse_fraction, refuse_unknown
from touchstone.images import MAX_SIDE, MIN_SIDE
from touchstone.ledger.quotas import QuotaUsage
from touchstone.ledger.records import ImageRef, JobKind, ModelRef, Submission, max_output_bytes
from touchstone.methods import Method, find as find_method, invalid_parameter, total_cost
from touchstone.methods.compatibility import check_compatible, check_target, resolve_parameters
from touchstone.methods.memory_price import ImageSize, check_memory
from touchstone.methods.prediction import MAX_TOP, Predict
from touchstone.models.manifest import Manifest
from touchstone.models.store import ModelStore, find_model
from touchstone.sandbox.decoder_pool import Decoders
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs

MAX_DEADLINE = 3600
MAX_NAME = 64 + len("@sha256:") + 64


def _index_or_name(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("expected a class's index or name")
    return str(value)


Seconds = Annotated[float, Field(gt=0, le=MAX_DEADLINE, allow_inf_nan=False), BeforeValidator(parse_fraction)]
"""A time to run."""

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
"""A side of an upload in pixels."""

Class = Annotated[
    str,
    BeforeValidator(_index_or_name),
    Field(min_length=1, max_length=200),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1, "maxLength": 200}]}
    ),
]
"""A class by its index or its name, as text."""


class CommonFields(BaseModel):
    """Fields of every submission besides the method's own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1,
        max_length=MAX_NAME,
        description="A model's id, as `GET /v1/models` lists them: its current version. `id@digest` names "
        "a certain version; twelve hexadecimal digits are enough.",
    )
    seed: Seed = Field(0, description="Equal seeds give equal noise.")
    execution: Literal["batched", "deterministic"] = Field(
        "batched",
        description="`deterministic` runs the job alone and gives the same bytes each time.",
    )
    deadline: Seconds | None = Field(None, description="Seconds the job may run, at most an hour.")
    webhook: Url | None = WEBHOOK


class AttackFields(CommonFields):
    """Fields of an attack besides."""

    label: Class | None = Field(
        None,
        description="The true class, as index or name; left out, the model's own prediction.",
        examples=[7],
    )
    target: Class | None = Field(
        None,
        description="The class to reach, as index or name; left out, any class but the label.",
        examples=[3],
    )


class CostFields(BaseModel):
    """Fields of a cost query besides the method's own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME,
        description="A model's id: the seconds are estimated for it.",
        examples=["fashion-mnist-cnn"],
    )
    width: Side | None = Field(
        None, description="Width of the image in pixels; with `height`, the memory is computed for it."
    )
    height: Side | None = Field(None, description="Height of the image in pixels.")


A = TypeVar("A", bound=BaseModel)


@dataclass
class PreparedJob:
    """A submission, and until they are stored its canonical PNG or file, and its examples."""

    submission: Submission
    source: bytes | Path | None
    passes: int = 0
    """The most queries of the job."""
    examples: bytes | None = None

    def needs(self) -> QuotaUsage:
        """The job's share of its tenant's quotas; to be computed before `store`."""
        source = self.source
        size = source.stat().st_size if isinstance(source, Path) else len(source or b"")
        return QuotaUsage(self.passes, size, max_output_bytes(self.submission))

    def store(self, blobs: Blobs) -> None:
        """Store the PNG or files and drop them from memory: the client may wait for the job for long."""
        if isinstance(self.source, Path):
            blobs.put_file(self.source, self.submission.source)
        elif self.source is not None:
            blobs.put(self.source)
        if self.examples is not None:
            blobs.put(self.examples)
        self.source = self.examples = None

    def digest(self) -> str:
        """A digest that is equal for equal requests, in whichever form they were sent."""
        return hashlib.sha256(self.submission.model_dump_json().encode()).hexdigest()


def prepare_method(
    method: type[Method], received: RawBody, *, settings: Settings, store: ModelStore, decoders: Decoders
) -> PreparedJob:
    """Check the submission of an attack or a certificate."""
    body = bodies.parse(received, settings.upload_limit)
    asked, parameters = _split(body.fields, request_fields(method), method, method.info.name)
    chosen = method.parse(parameters)
    manifest = find_model(store, asked.model)
    check_compatible(chosen, manifest)
    check_webhook_url(asked.webhook, settings)
    chosen = resolve_parameters(chosen, manifest, store)
    label, target = (
        _resolve_classes(method, manifest, asked) if isinstance(asked, AttackFields) else (None, None)
    )
    passes = check_cost(chosen, settings.cost_limit)
    canonical = decoders.canonical(body.image)
    check_memory(chosen, size_of(canonical[1], manifest), settings.job_memory)
    return _build_job(
        canonical,
        asked,
        manifest,
        passes=passes,
        kind=chosen.kind,
        method=method.info.name,
        parameters=chosen.model_dump(mode="json"),
        label=label,
        target=target,
    )


def request_fields(method: type[Method]) -> type[CommonFields]:
    """The model of the fields besides the method's parameters; a certificate takes no classes."""
    return AttackFields if method.kind == "attack" else CommonFields


def prepare_prediction(
    received: RawBody, *, settings: Settings, store: ModelStore, decoders: Decoders
) -> PreparedJob:
    """Check the submission of a prediction."""
    body = bodies.parse(received, settings.upload_limit)
    asked, parameters = _split(body.fields, CommonFields, Predict, "predictions")
    manifest = find_model(store, asked.model)
    chosen = _parse_prediction(parameters, manifest)
    check_compatible(chosen, manifest)
    check_webhook_url(asked.webhook, settings)
    passes = check_cost(chosen, settings.cost_limit)
    canonical = decoders.canonical(body.image)
    check_memory(chosen, size_of(canonical[1], manifest), settings.job_memory)
    return _build_job(
        canonical,
        asked,
        manifest,
        passes=passes,
        kind="prediction",
        method="predict",
        parameters=chosen.parameters(),
    )


def size_of(image: ImageRef, manifest: Manifest) -> ImageSize:
    """What the memory of a job on this image follows from."""
    return ImageSize(image.width, image.height, image.channels, input_values(manifest), len(manifest.classes))


def input_values(manifest: Manifest) -> int:
    """How many values the network's own input has."""
    return manifest.input.channels * manifest.input.height * manifest.input.width


@dataclass(frozen=True)
class CostRequest:
    """What a cost query is about."""

    method: Method | Predict
    manifest: Manifest | None = None
    width: int | None = None
    height: int | None = None

    @property
    def image(self) -> ImageSize | None:
        """The size of the image, where it was given."""
        if self.width is None or self.height is None:
            return None
        if self.manifest is None:
            return ImageSize(self.width, self.height)
        size = ImageSize(self.width, self.height, input_values=input_values(self.manifest))
        return replace(size, classes=len(self.manifest.classes))


def parse_method_cost(method: type[Method], fields: Mapping[str, Any], store: ModelStore) -> CostRequest:
    """Check the parameters of a cost query as at a submission."""
    asked, parameters = _split(fields, CostFields, method, f"the cost of {method.info.name}", files=())
    chosen = method.parse(parameters)
    manifest = find_model(store, asked.model) if asked.model else None
    if manifest is not None:
        check_compatible(chosen, manifest)
    return CostRequest(chosen, manifest, asked.width, asked.height)


def parse_prediction_cost(fields: Mapping[str, Any], store: ModelStore) -> CostRequest:
    """Check the parameters of a prediction's cost query as at a submission."""
    asked, parameters = _split(fields, CostFields, Predict, "the cost of predictions", files=())
    manifest = find_model(store, asked.model) if asked.model else None
    chosen = _parse_prediction(parameters, manifest)
    if manifest is not None:
        check_compatible(chosen, manifest)
    return CostRequest(chosen, manifest, asked.width, asked.height)


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


def _resolve_classes(
    method: type[Method], manifest: Manifest, asked: AttackFields
) -> tuple[int | None, int | None]:
    if asked.target is not None and not method.info.targeted:
        raise InvalidParameter(f"target: {method.info.name} cannot be targeted; leave it out", field="target")
    label = None if asked.label is None else manifest.resolve_label(asked.label)
    target = None if asked.target is None else manifest.resolve_label(asked.target, field="target")
    check_target(label, target)
    return label, target


def check_cost(method: Method | Predict, limit: int) -> int:
    """The most queries of the job; raises `CostTooHigh` where they exceed the limit."""
    cost = total_cost(method)
    if cost.total > limit:
        raise CostTooHigh(
            f"the job may ask the model {cost.total:,} times; at most {limit:,} are allowed:"
            " take fewer steps, restarts or samples",
            cost={"forward": cost.forward, "backward": cost.backward, "total": cost.total},
            limit=limit,
        )
    return cost.total


def passes_of(submission: Submission) -> int:
    """The most queries of a job that is submitted again."""
    known: type[Method | Predict] = (
        Predict if submission.kind == "prediction" else find_method(submission.method)
    )
    return total_cost(known.model_validate(submission.parameters)).total


def check_model(submission: Submission, store: ModelStore) -> None:
    """Raise `JobConflict` where the model's version of a job no longer exists."""
    try:
        store.manifest(submission.model.id, submission.model.digest)
    except UnknownModel:
        raise JobConflict(
            f"the model {submission.model.id} is no longer the one that the job ran on"
        ) from None


def _parse_prediction(parameters: Mapping[str, Any], manifest: Manifest | None) -> Predict:
    try:
        chosen = Predict.model_validate(parameters)
    except ValidationError as error:
        raise invalid_parameter(error) from None
    if chosen.top > MAX_TOP:
        raise InvalidParameter(
            f"top: {chosen.top:,} classes; at most {MAX_TOP:,} can be named, and inference gives all logits",
            field="top",
        )
    if manifest is None:
        return chosen
    classes = len(manifest.classes)
    if "top" in parameters and chosen.top > classes:
        raise InvalidParameter(f"top: {manifest.id} has {classes} classes, not {chosen.top}", field="top")
    return chosen.model_copy(update={"top": min(chosen.top, classes)})


def _build_job(
    canonical: tuple[bytes, ImageRef],
    asked: CommonFields,
    manifest: Manifest,
    *,
    passes: int,
    kind: JobKind,
    method: str,
    parameters: dict[str, Any],
    label: int | None = None,
    target: int | None = None,
) -> PreparedJob:
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
    return PreparedJob(submission, png, passes)
