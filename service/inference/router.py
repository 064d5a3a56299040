"""The Open Inference Protocol: every model, as clients of KServe and Triton call it."""

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
from service.dependencies import backend_of
from service.inference import inputs, outputs, schemas
from service.inference.inputs import HEADER_LENGTH, Question
from service.inference.outputs import BINARY
from service.inference.schemas import (
    InferenceAnswer,
    InferenceRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
)
from service.openapi import examples, operations
from service.routers import health
from service.state.backend import Backend
from service.state.job_waiters import LONGEST_SECONDS
from service.submissions import acceptance, bodies, responses
from service.submissions.bodies import Received
from service.submissions.validation import Prepared
from touchstone.errors import Failure, JobConflict, NotReady
from touchstone.ledger.records import Job, ModelRef, Submission
from touchstone.methods.inference import OUTPUTS, Infer, from_npy, pack
from touchstone.models.manifest import Manifest
from touchstone.models.store import find
from touchstone.storage.blobs import digest_of

router = APIRouter(tags=["inference"])

_TYPES = (bodies.JSON, BINARY, "")  # Triton's client names no type
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
HeadLength = Annotated[
    str | None,
    Header(
        alias=HEADER_LENGTH,
        description="Bytes of the JSON, where tensors follow it.",
        json_schema_extra={"pattern": "^[0-9]{1,19}$"},
    ),
]
_OF_VERSION = {
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
    summary="What this server is",
    responses={200: examples.content({"name": "touchstone", "version": "0.1.0", "extensions": []})},
)
async def get_server() -> schemas.ServerMetadata:
    """Its name, its version, and the extensions of the Open Inference Protocol that it knows."""
    return schemas.ServerMetadata(
        name="touchstone", version=version_of("touchstone-robustness"), extensions=list(schemas.EXTENSIONS)
    )


@router.get(
    "/v2/health/live",
    operation_id="get_inference_live",
    summary="Whether the process is alive",
    responses={200: examples.content({"live": True})},
)
async def get_live() -> Live:
    """It answers, so it is."""
    return Live(live=True)


@router.get(
    "/v2/health/ready",
    operation_id="get_inference_ready",
    summary="Whether models can answer",
    responses={200: examples.content({"ready": True}), **problems.responses()},
)
def get_ready(request: Request) -> Ready:
    """The ledger answers and a worker is alive; otherwise 503, as from `/readyz`."""
    health.get_readiness(request)
    return Ready(ready=True)


def named(request: Request, model: Model) -> Manifest:
    """The model in the path: the version that the path names, or the current one."""
    version = request.path_params.get("version")
    return find(backend_of(request).models, model if version is None else f"{model}@{version}")


Card = Annotated[Manifest, Depends(named)]
E = TypeVar("E", bound=Callable[..., Any])


def _for_models(verb: str, tail: str, name: str, **told: Any) -> Callable[[E], E]:
    """Have something answer for a model, and likewise for a version of one."""
    extra = told.pop("openapi_extra", {})

    def add(endpoint: E) -> E:
        for path, kind, parameters in ((_MODEL, "model", []), (_VERSION, "version", [_OF_VERSION])):
            router.add_api_route(
                path + tail,
                endpoint,
                methods=[verb],
                operation_id=name.format(kind),
                openapi_extra={**extra, "parameters": parameters},
                **told,
            )
        return endpoint

    return add


@_for_models(
    "GET",
    "",
    "get_inference_{}",
    dependencies=[reader],
    summary="What tensors a model takes and gives",
    responses={200: examples.content(examples.TENSORS), **problems.responses(404)},
)
def get_metadata(request: Request, card: Card) -> ModelMetadata:
    """The input takes other datatypes, too, which its `parameters` describe."""
    versions = backend_of(request).models.versions(card.id)
    return schemas.metadata(card, [one.digest for one in versions])


@_for_models(
    "GET",
    "/ready",
    "get_inference_{}_ready",
    dependencies=[reader],
    summary="Whether a model can answer",
    responses={
        200: examples.content({"name": "fashion-mnist-cnn", "ready": True}),
        **problems.responses(404),
    },
)
def get_model_ready(request: Request, card: Card) -> ModelReady:
    """It is there, and a worker is alive; a model is loaded when it is asked."""
    health.get_readiness(request)
    return ModelReady(name=card.id, ready=True)


_BYTES = {
    "type": "string",
    "contentMediaType": BINARY,
    "description": f"JSON of as many bytes as {HEADER_LENGTH} says, and the tensors behind it.",
}


def _body() -> dict[str, Any]:
    """How OpenAPI describes a request."""
    schema = InferenceRequest.model_json_schema(ref_template=operations.REF)
    definitions = schema.pop("$defs")
    text = {"schema": schema, "example": examples.INFERENCE}
    content = {bodies.JSON: text, BINARY: {"schema": _BYTES}}
    return {"requestBody": {"required": True, "content": content}, "x-definitions": definitions}


_TOLD = {**examples.content(examples.INFERRED)["content"], BINARY: {"schema": _BYTES}}


@_for_models(
    "POST",
    "/infer",
    "infer_{}",
    dependencies=[submitter],
    summary="Ask a model about images",
    response_model=InferenceAnswer,
    responses={200: {"content": _TOLD}, **problems.responses(400, 404, 408, 409, 413, 415, 422, 429, 507)},
    openapi_extra=_body(),
)
async def infer(request: Request, card: Card, header_length: HeadLength = None) -> Response:
    """Logits and probabilities of a batch of images. Tensors come and go in JSON, or as bytes behind it.

    While it runs it is a job like any other, and is batched with all of them; it ends with the answer, which
    takes at most a minute.
    """
    backend = backend_of(request)
    prepare = partial(_prepare, header_length=header_length, card=card, backend=backend)
    asked, prepared = await acceptance.checked(request, prepare, *_TYPES)
    job: Job | None = None
    try:
        job = await acceptance.run(request, prepared, seconds=LONGEST_SECONDS)
        if job.status != "succeeded":
            return await to_thread.run_sync(_without_answer, request, backend, job)
        return await to_thread.run_sync(_answer, backend, asked, card, job)
    finally:
        await to_thread.run_sync(_forget, backend, prepared, job)


def _prepare(
    received: Received, *, header_length: str | None, card: Manifest, backend: Backend
) -> tuple[InferenceRequest, Prepared]:
    question = inputs.read(received, header_length, card.input, backend.settings, backend.decoders)
    outputs.check(question.request, len(card.classes))
    return question.request.without_data(), _prepared(question, card)


def _prepared(question: Question, card: Manifest) -> Prepared:
    file = pack(question.stacks)
    asked = Infer(datatype=question.request.inputs[0].datatype, rows=question.rows)
    submission = Submission(
        kind="inference",
        method="infer",
        model=ModelRef(id=card.id, digest=card.digest),
        file=digest_of(file),
        parameters=asked.model_dump(mode="json"),
        execution=question.request.parameters.execution,
        deadline=LONGEST_SECONDS,
    )
    return Prepared(submission, file, question.rows)


def _answer(backend: Backend, asked: InferenceRequest, card: Manifest, job: Job) -> Response:
    (logits,) = from_npy(backend.blobs.get(job.artifacts[OUTPUTS].digest))
    return outputs.answer(asked, card, logits)


def _without_answer(request: Request, backend: Backend, job: Job) -> Response:
    if responses.is_over(job):
        return responses.failed(request, job, {})
    with suppress(JobConflict):  # it has just ended
        backend.ledger.cancel(job.id)
    check_still_permitted(request)
    raise NotReady(
        f"the model did not answer within {LONGEST_SECONDS} seconds: too much waits, or no worker is alive"
    )


def _forget(backend: Backend, prepared: Prepared, job: Job | None) -> None:
    """Leave nothing of what was answered, for such requests are many; what failed stays to be looked at."""
    with suppress(Failure):
        backend.blobs.forget(prepared.submission.source)
        if job and job.status == "succeeded":
            backend.ledger.delete(job.id)
