"""The Open Inference Protocol, which clients of KServe and Triton use: every model by its routes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version as version_of
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Request, Response

from service import problems
from service.auth.permissions import check_still_permitted, reader, submitter
from service.dependencies import Tenant
from service.inference import inputs, outputs, protocol
from service.inference.inputs import HEADER_LENGTH, ParsedRequest
from service.inference.outputs import BINARY
from service.inference.protocol import (
    InferenceAnswer,
    InferenceRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
)
from service.openapi import examples, operations
from service.routers import health
from service.state.backend import AllTenants, TenantBackend
from service.state.job_waiters import MAX_WAIT_SECONDS
from service.submissions import acceptance, bodies, responses
from service.submissions.bodies import RawBody
from service.submissions.validation import PreparedJob
from touchstone.errors import Failure, JobConflict, NotReady
from touchstone.ledger.records import Job, ModelRef, Submission
from touchstone.methods.inference import OUTPUTS, Infer, from_npy, pack
from touchstone.models.manifest import Manifest
from touchstone.models.store import find_model
from touchstone.storage.blobs import digest_of

router = APIRouter(tags=["inference"])

_TYPES = (bodies.JSON, BINARY, "")  # Triton's client sends no type
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"

Model = Annotated[
    str,
    Path(
        description="A model's id, as `GET /v1/models` lists them.",
        examples=["fashion-mnist-cnn"],
        json_schema_extra={"pattern": r"^[a-z0-9][a-z0-9._-]{0,63}$"},
    ),
]
HeaderLength = Annotated[
    str | None,
    Header(
        alias=HEADER_LENGTH,
        description="Bytes of the JSON, where binary tensors follow it.",
        json_schema_extra={"pattern": "^[0-9]{1,19}$"},
    ),
]
_VERSION_PARAMETER = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "A version's digest, or at least twelve of its hexadecimal digits.",
    "schema": {"type": "string", "pattern": r"^(sha256:)?[0-9a-f]{12,64}$"},
    "example": examples.DIGEST,
}


@router.get(
    "/v2",
    dependencies=[reader],
    operation_id="get_inference_server",
    summary="The server's metadata",
    responses={200: examples.content({"name": "touchstone", "version": "0.1.0", "extensions": []})},
)
async def get_server() -> protocol.ServerMetadata:
    """Its name, its version, and the extensions of the Open Inference Protocol that it supports."""
    return protocol.ServerMetadata(
        name="touchstone", version=version_of("touchstone-robustness"), extensions=list(protocol.EXTENSIONS)
    )


@router.get(
    "/v2/health/live",
    operation_id="get_inference_live",
    summary="Whether the process is alive",
    responses={200: examples.content({"live": True})},
)
async def get_live() -> Live:
    """Always 200 while the process responds."""
    return Live(live=True)


@router.get(
    "/v2/health/ready",
    operation_id="get_inference_ready",
    summary="Whether models can run inference",
    responses={200: examples.content({"ready": True}), **problems.responses()},
)
def get_ready(backend: AllTenants) -> Ready:
    """200 if the ledger answers and a worker is alive; otherwise 503, as from `/readyz`."""
    health.count_workers(backend)
    return Ready(ready=True)


def find_path_model(request: Request, backend: Tenant, model: Model) -> Manifest:
    """The model in the path: the version that the path names, or the current one."""
    version = request.path_params.get("version")
    return find_model(backend.models, model if version is None else f"{model}@{version}")


KnownModel = Annotated[Manifest, Depends(find_path_model)]
E = TypeVar("E", bound=Callable[..., Any])


def _for_models(verb: str, tail: str, name: str, **options: Any) -> Callable[[E], E]:
    """Add a route for a model, and the same for a version of a model."""
    extra = options.pop("openapi_extra", {})

    def add(endpoint: E) -> E:
        for path, kind, parameters in ((_MODEL, "model", []), (_VERSION, "version", [_VERSION_PARAMETER])):
            router.add_api_route(
                path + tail,
                endpoint,
                methods=[verb],
                operation_id=name.format(kind),
                openapi_extra={**extra, "parameters": parameters},
                **options,
            )
        return endpoint

    return add


@_for_models(
    "GET",
    "",
    "get_inference_{}",
    dependencies=[reader],
    summary="A model's metadata",
    responses={200: examples.content(examples.TENSORS), **problems.responses(404)},
)
def get_metadata(backend: Tenant, manifest: KnownModel) -> ModelMetadata:
    """Its tensors. The input accepts other datatypes, too, which its `parameters` list."""
    return protocol.metadata(manifest, list(backend.models.digests(manifest.id)))


@_for_models(
    "GET",
    "/ready",
    "get_inference_{}_ready",
    dependencies=[reader],
    summary="Whether a model can run inference",
    responses={
        200: examples.content({"name": "fashion-mnist-cnn", "ready": True}),
        **problems.responses(404),
    },
)
def get_model_ready(backend: Tenant, manifest: KnownModel) -> ModelReady:
    """200 if the model exists and a worker is alive; a model is loaded at its first request."""
    health.count_workers(backend)
    return ModelReady(name=manifest.id, ready=True)


_BYTES = {
    "type": "string",
    "contentMediaType": BINARY,
    "description": f"JSON of as many bytes as {HEADER_LENGTH} says, followed by the tensors.",
}


def _describe_request() -> dict[str, Any]:
    """The OpenAPI description of a request."""
    schema = InferenceRequest.model_json_schema(ref_template=operations.REF)
    definitions = schema.pop("$defs")
    text = {"schema": schema, "example": examples.INFERENCE}
    content = {bodies.JSON: text, BINARY: {"schema": _BYTES}}
    return {"requestBody": {"required": True, "content": content}, "x-definitions": definitions}


_RESPONSE_CONTENT = {**examples.content(examples.INFERENCE_ANSWER)["content"], BINARY: {"schema": _BYTES}}


@_for_models(
    "POST",
    "/infer",
    "infer_{}",
    dependencies=[submitter],
    summary="Run inference on images",
    response_model=InferenceAnswer,
    responses={
        200: {"content": _RESPONSE_CONTENT},
        **problems.responses(400, 404, 408, 409, 413, 415, 422, 429, 507),
    },
    openapi_extra=_describe_request(),
)
async def infer(
    request: Request, backend: Tenant, manifest: KnownModel, header_length: HeaderLength = None
) -> Response:
    """Logits and probabilities of a batch of images. Tensors are sent in JSON, or as bytes after it.

    While it runs it is a job like any other, and batched with others; it is deleted once answered, after at
    most a minute.
    """
    prepare = partial(_prepare, header_length=header_length, manifest=manifest, backend=backend)
    asked, prepared = await acceptance.receive_checked(request, backend, prepare, *_TYPES)
    job: Job | None = None
    try:
        job = await acceptance.accept_and_wait(request, backend, prepared, seconds=MAX_WAIT_SECONDS)
        if job.status != "succeeded":
            return await to_thread.run_sync(_respond_without_result, request, backend, job)
        return await to_thread.run_sync(_build_response, backend, asked, manifest, job)
    finally:
        await to_thread.run_sync(_clean_up, backend, prepared, job)


def _prepare(
    received: RawBody, *, header_length: str | None, manifest: Manifest, backend: TenantBackend
) -> tuple[InferenceRequest, PreparedJob]:
    decoders = backend.decoders.of(backend.ledger.tenant)
    parsed = inputs.parse_request(received, header_length, manifest.input, backend.settings, decoders)
    outputs.check(parsed.request, len(manifest.classes))
    return parsed.request.without_data(), _build_job(parsed, manifest)


def _build_job(parsed: ParsedRequest, manifest: Manifest) -> PreparedJob:
    file = pack(parsed.stacks)
    asked = Infer(datatype=parsed.request.inputs[0].datatype, rows=parsed.rows)
    submission = Submission(
        kind="inference",
        method="infer",
        model=ModelRef(id=manifest.id, digest=manifest.digest),
        file=digest_of(file),
        parameters=asked.model_dump(mode="json"),
        execution=parsed.request.parameters.execution,
        deadline=MAX_WAIT_SECONDS,
    )
    return PreparedJob(submission, file, parsed.rows)


def _build_response(
    backend: TenantBackend, asked: InferenceRequest, manifest: Manifest, job: Job
) -> Response:
    (logits,) = from_npy(backend.blobs.get(job.artifacts[OUTPUTS].digest))
    return outputs.build_response(asked, manifest, logits)


def _respond_without_result(request: Request, backend: TenantBackend, job: Job) -> Response:
    if responses.is_over(job):
        return responses.problem_response(request, job, {})
    with suppress(JobConflict):  # it has just ended
        backend.ledger.cancel(job.id)
    check_still_permitted(request)
    raise NotReady(
        f"the model did not answer within {MAX_WAIT_SECONDS} seconds: too much waits, or no worker is alive"
    )


def _clean_up(backend: TenantBackend, prepared: PreparedJob, job: Job | None) -> None:
    """Delete the input and a successful job, for such requests are many; failed jobs stay."""
    with suppress(Failure):
        backend.blobs.delete(prepared.submission.source)
        if job and job.status == "succeeded":
            backend.ledger.delete(job.id)
