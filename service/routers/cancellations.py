"""Canceling many jobs at once."""

from __future__ import annotations

from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service import problems
from service.auth.permissions import submitter
from service.dependencies import Tenant
from service.openapi import examples
from service.submissions import bodies
from service.submissions.bodies import JSON, RawBody
from touchstone.fields import refuse_unknown
from touchstone.ledger.records import Status
from touchstone.ledger.replies import Cancellation
from touchstone.methods import invalid_parameter

router = APIRouter(tags=["jobs"])

MAX_JOBS = 200


class Jobs(BaseModel):
    """Some jobs by their ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: list[Annotated[str, Field(max_length=64)]] = Field(
        fail_fast=True, min_length=1, max_length=MAX_JOBS, description="The ids of the jobs to cancel."
    )


class Canceled(BaseModel):
    """The result for one job."""

    id: str
    status: Status | None = Field(description="The job's status now; null where there is no such job.")
    code: Literal["job_conflict", "unknown_job"] | None = Field(description="Why it cannot be canceled.")
    detail: str | None = Field(description="The reason as a sentence.")


class AllCanceled(BaseModel):
    """The results, in the order of the request."""

    items: list[Canceled]


_EXAMPLE = {"jobs": [examples.JOB["id"], "7c9e6679f1f4445fa7e0d2b1c3a45e66"]}
_ANSWER = {
    "items": [
        {"id": _EXAMPLE["jobs"][0], "status": "canceled", "code": None, "detail": None},
        {
            "id": _EXAMPLE["jobs"][1],
            "status": "succeeded",
            "code": "job_conflict",
            "detail": "the job has already succeeded; only a waiting or running job can be canceled",
        },
    ]
}


@router.post(
    "/v1/jobs/cancel",
    dependencies=[submitter],
    operation_id="cancel_jobs",
    summary="Cancel many jobs",
    response_model=AllCanceled,
    responses={200: examples.content(_ANSWER), **problems.responses(400, 408, 413, 415, 422)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": Jobs.model_json_schema(), "example": _EXAMPLE}},
        }
    },
)
async def cancel_jobs(request: Request, backend: Tenant) -> Response:
    """All in one step. A job that cannot be canceled does not affect the others; a running one ends within a
    second, and its status is `running` until then.
    """
    received = await bodies.receive(request, JSON)

    def cancel() -> AllCanceled:
        answers = backend.ledger.cancel_all(_parse(received).jobs)
        return AllCanceled(items=[_show(answer) for answer in answers])

    answer = await to_thread.run_sync(cancel)
    return Response(answer.model_dump_json(), media_type=JSON)


def _parse(received: RawBody) -> Jobs:
    fields = bodies.fields_of(received)
    refuse_unknown(fields, list(Jobs.model_fields), "cancel")
    try:
        return Jobs.model_validate(fields)
    except ValidationError as error:
        raise invalid_parameter(error) from None


def _show(answer: Cancellation) -> Canceled:
    code, detail = (answer.refusal.code, answer.refusal.detail) if answer.refusal else (None, None)
    return Canceled.model_validate({"id": answer.id, "status": answer.status, "code": code, "detail": detail})
