"""Continuing a certificate that has ended: more samples on top of those counted."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.state.backend import TenantBackend
from service.submissions import bodies
from service.submissions.bodies import RawBody
from service.submissions.validation import PreparedJob, Seconds, check_cost, check_model
from service.submissions.webhook_urls import WEBHOOK, Url, check_webhook_url
from touchstone.engine.noise_streams import FORMER_SAMPLE_STREAM, SAMPLE_STREAM
from touchstone.errors import JobConflict
from touchstone.fields import Count, Distance, refuse_unknown
from touchstone.ledger.records import Job, Submission
from touchstone.methods import Certificate, find, invalid_parameter


class ContinuationFields(BaseModel):
    """How a certificate continues; a field that is left out keeps its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Count = Field(description="The most samples to add to those counted.", examples=[10_000])
    target_radius: Distance | None = Field(
        None, description="Test this L2 radius, instead of the one before."
    )
    deadline: Seconds | None = Field(None, description="Seconds the job may run, at most an hour.")
    webhook: Url | None = WEBHOOK


def prepare_continuation(job: Job, received: RawBody, *, backend: TenantBackend) -> PreparedJob:
    """A new job that continues a certificate with rule=e_process; `JobConflict` for any other."""
    method = _check_continuable(job)
    check_model(job.submission, backend.models)
    asked = _parse(received)
    check_webhook_url(asked.webhook, backend.settings)
    passes = check_cost(method.model_copy(update={"n": asked.n}), backend.settings.cost_limit)
    before, sampling = job.submission, (job.result or {})["sampling"]
    changes: dict[str, Any] = {"n": sampling["n_used"] + asked.n}
    changes |= asked.model_dump(include={"target_radius"} & asked.model_fields_set)
    chosen = method.parse({**before.parameters, **changes})
    submission = before.model_copy(
        update={
            "parameters": chosen.model_dump(mode="json"),
            "seed": sampling["seed"],
            "deadline": asked.deadline or before.deadline,
            "webhook": asked.webhook or before.webhook,
            "continues": job.id,
            "rerun_of": None,
        }
    )
    return PreparedJob(submission, backend.blobs.get(before.source), passes)


def _parse(received: RawBody) -> ContinuationFields:
    fields = bodies.fields_of(received)
    refuse_unknown(fields, list(ContinuationFields.model_fields), "continue")
    try:
        return ContinuationFields.model_validate(fields)
    except ValidationError as error:
        raise invalid_parameter(error) from None


def _check_continuable(job: Job) -> Certificate:
    asked = job.submission
    method = find(asked.method).parse(asked.parameters) if asked.kind == "certificate" else None
    if not isinstance(method, Certificate):
        raise JobConflict(f"the job is of kind {asked.kind}; only a certificate has samples to add to")
    if method.pooling_parameters() is None:
        raise JobConflict(_explain_fixed_rule(asked))
    if job.status not in ("succeeded", "canceled") or job.result is None:
        raise JobConflict(
            f"the job is {job.status} and has no counts to go on from; only a certificate that has ended "
            "with a result can be continued"
        )
    if job.result["sampling"].get("stream", FORMER_SAMPLE_STREAM) != SAMPLE_STREAM:
        raise JobConflict(
            "the job drew its samples from another stream of noise than this version does, and their counts "
            "cannot be added; submit a new job"
        )
    return method


def _explain_fixed_rule(submission: Submission) -> str:
    rule = submission.parameters.get("rule", "fixed")
    return (
        f"{submission.method} under the rule {rule} plans its samples before it starts, and more of them "
        "would void what it proves; submit a new job of smoothing with rule=e_process, which can be "
        "continued at any time"
    )
