"""Registering a model: its file is stored and checked, and a job tries the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service import problems, schemas
from service.auth.permissions import submitter
from service.dependencies import Tenant
from service.headers import Preferences
from service.openapi import examples, operations
from service.routers import models
from service.state.backend import TenantBackend
from service.submissions import acceptance, bodies, model_uploads
from service.submissions.bodies import RawBody
from service.submissions.file_uploads import UploadedForm
from service.submissions.model_uploads import StoredModel
from service.submissions.multipart import Value
from service.submissions.validation import PreparedJob
from service.submissions.webhook_urls import check_webhook_url
from touchstone.errors import (
    AddressRefused,
    ImageTooLarge,
    InvalidParameter,
    ModelTooLarge,
    RemoteUnavailable,
)
from touchstone.fields import refuse_unknown
from touchstone.json_limits import JsonLimits
from touchstone.ledger.records import Submission
from touchstone.models.manifest import Manifest
from touchstone.net.outbound import OutboundClient
from touchstone.registration import model_files, submission as registration_submission
from touchstone.registration.examples import Examples
from touchstone.registration.precheck import check_file
from touchstone.registration.request import Registration

router = APIRouter(tags=["models"], dependencies=[submitter])

_MANIFEST_LIMITS = JsonLimits(containers=10_000, values=500_000)
"""Of a manifest or a configuration: a hundred thousand classes may be in it three times."""

_CONFIGS = ("config", "preprocessor_config")
_PARTS = ("file", "data", "examples", "manifest", "labels", *_CONFIGS, "webhook")


@router.post(
    "/v1/models",
    operation_id="register_model",
    summary="Register a model",
    status_code=202,
    response_model=schemas.Job,
    responses={
        200: {
            "description": "The job has ended, or the same version was registered before: then its card, "
            "with `Location: /v1/models/…`.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        202: {
            "description": "The job that tries the model is accepted.",
            **examples.content(examples.REGISTRATION),
        },
        **problems.responses(400, 408, 409, 413, 415, 422, 429, 507),
    },
    openapi_extra=operations.describe_registration(Registration),
)
async def register_model(request: Request, backend: Tenant, preferences: Preferences) -> Response:
    """An ONNX file, or safetensors with a named architecture or its `config.json`; or as JSON the manifest of
    a `remote` model.

    Where PyTorch wrote the weights to a second file, `m.onnx.data`, send it under its name as `data`, or both
    files in one zip as `file`.

    Up to 100 labelled images in a zip, as `examples`, are classified in the trial: the accuracy is in the
    result and in the card's `probe`, with warnings where it is chance, or where another channel order,
    normalization or order of the classes would make it far better.

    A file in another format is refused at once; then a job tries the model in a process of its own: shapes,
    finite outputs, gradient, speed. Once that has succeeded, other jobs can name the model.

    A version is identified by its bytes: another file with the same id becomes the model's current version,
    the one before stays and is named `id@digest`. The same file and manifest again are no new version.
    """
    tenant = backend.ledger.tenant
    if bodies.check_type(request, bodies.MULTIPART, bodies.JSON) == bodies.JSON:
        request_fields = await acceptance.receive_checked(request, backend, _remote_request)
        # Threads of their own: a host name that resolves slowly delays no other request.
        prepared = await backend.dns_threads.run(tenant, _prepare_remote, backend, *request_fields)
        return await acceptance.accept_and_respond(request, backend, preferences, prepared)
    async with AsyncExitStack() as stack:
        form = await model_uploads.receive(request, backend, stack)
        fields = await backend.check_threads.run(tenant, _parse_fields, form)
        model = await model_uploads.make_one_file(backend, form, stack)
        examples = await backend.check_threads.run(tenant, _read_examples, backend, form, fields, model)
        checked = await backend.check_threads.run(tenant, _check, backend, fields, model, examples)
        # A client that sends an idempotency key gets the key's job, one that sends examples their accuracy.
        if checked.known and examples is None and preferences.idempotency_key is None:
            return await to_thread.run_sync(_show_registered, backend, checked.known)
        return await acceptance.accept_and_respond(request, backend, preferences, checked.prepared)


@dataclass(frozen=True)
class _Fields:
    """What a form says of a model, checked."""

    registration: Registration
    webhook: str | None


def _parse_fields(form: UploadedForm) -> _Fields:
    """Check the parts of a form, and that it has the files that it needs."""
    fields = bodies.unique_fields(form.parts)
    refuse_unknown(fields, _PARTS, "a registration")
    registration = _parse_registration(fields)
    if "file" not in form.files:
        raise InvalidParameter("file: missing; an ONNX or safetensors file is needed", field="file")
    for name in ("data", "examples"):
        if name in fields and name not in form.files:
            raise InvalidParameter(f"{name}: expected a file, with its name", field=name)
    for name, file in form.files.items():
        if file.size > file.limit:
            kind = ImageTooLarge if name == "examples" else ModelTooLarge
            raise kind(
                f"{name}: the file has {file.size:,} bytes; at most {file.limit:,} are allowed", field=name
            )
    return _Fields(registration, _decode_text(fields["webhook"], "webhook") if "webhook" in fields else None)


def _read_examples(
    backend: TenantBackend, form: UploadedForm, fields: _Fields, model: StoredModel
) -> Examples | None:
    """The labelled images, whose labels may be those of a published configuration."""
    if "examples" not in form.files:
        return None
    manifest = fields.registration.build_manifest(model.digest, model.format)
    return model_uploads.read_examples(backend, form, manifest.classes)


@dataclass(frozen=True)
class _CheckedRegistration:
    """A valid registration, and its version where that is registered already."""

    prepared: PreparedJob
    known: Manifest | None


def _check(
    backend: TenantBackend, fields: _Fields, model: StoredModel, examples: Examples | None
) -> _CheckedRegistration:
    """Check everything of a registration that needs no run of the model."""
    submission = registration_submission.prepare_known(
        fields.registration, model.digest, model.format, examples.ref if examples else None
    )
    submission = _with_webhook(submission, fields.webhook, backend)
    manifest = Manifest.model_validate(submission.parameters)
    with model_files.map_file(model.path) as data:
        check_file(manifest, data)
    known = registration_submission.find_registered(manifest, backend.models)
    return _CheckedRegistration(
        PreparedJob(submission, model.path, examples=examples.content if examples else None), known
    )


def _parse_registration(fields: Mapping[str, Value]) -> Registration:
    """The manifest, with the classes from a file of labels and the configurations where there are some."""
    if "manifest" not in fields:
        raise InvalidParameter(
            'manifest: missing; JSON is needed, such as {"id": "my-net", "classes": ["cat", "dog"], '
            '"input": {"height": 224, "width": 224}}',
            field="manifest",
        )
    manifest = _parse_object(fields["manifest"], "manifest")
    texts = {"labels": _decode_text(fields["labels"], "labels")} if "labels" in fields else {}
    configs = {name: _parse_object(fields[name], name) for name in _CONFIGS if name in fields}
    parts: dict[str, Any] = {**texts, **configs}
    for name in parts:
        if name in manifest:
            raise InvalidParameter(f"{name}: given more than once", field=name)
    return Registration.parse({**manifest, **parts})


def _parse_object(value: Value, field: str) -> dict[str, Any]:
    try:
        return bodies.json_fields(_encode_text(value), _MANIFEST_LIMITS)
    except HTTPException as error:
        raise InvalidParameter(f"{field}: {error.detail}", field=field) from None


def _encode_text(value: Value) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _decode_text(value: Value, field: str) -> str:
    try:
        return _encode_text(value).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidParameter(f"{field}: expected UTF-8 text", field=field) from None


def _show_registered(backend: TenantBackend, manifest: Manifest) -> Response:
    where = f"/v1/models/{manifest.id}?version={manifest.digest}"
    return models.build_response(backend, manifest, headers={"Location": where})


def _remote_request(received: RawBody) -> tuple[Registration, Any]:
    """The registration of a remote model, and the webhook."""
    fields = bodies.json_fields(received.content, _MANIFEST_LIMITS)
    webhook = fields.pop("webhook", None)
    registration = Registration.parse(fields)
    if registration.remote is None:
        raise InvalidParameter(
            "file: missing; send multipart/form-data with the parts file and manifest", field="file"
        )
    return registration, webhook


def _prepare_remote(backend: TenantBackend, registration: Registration, webhook: Any) -> PreparedJob:
    """The job of a remote model, whose address is resolved here."""
    outgoing = OutboundClient(backend.settings.outgoing_allow)
    try:
        submission, file = registration_submission.prepare_remote(
            registration, outgoing, backend.ledger.tenant
        )
    except RemoteUnavailable as error:  # here the address is wrong, no known model is unavailable
        raise AddressRefused(f"url: {error.detail}", field="url") from None
    return PreparedJob(_with_webhook(submission, webhook, backend), file)


def _with_webhook(submission: Submission, webhook: Any, backend: TenantBackend) -> Submission:
    """The submission with its webhook, if there is one."""
    if webhook is not None and not isinstance(webhook, str):
        raise InvalidParameter("webhook: expected a URL as text", field="webhook")
    check_webhook_url(webhook, backend.settings)
    return submission.model_copy(update={"webhook": webhook})
