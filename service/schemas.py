"""The JSON of a job in responses, events and webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.ledger import records
from touchstone.ledger.records import ImageRef, JobKind, ModelRef, Progress, Status, Timings
from touchstone.ledger.replies import JobChange
from touchstone.registration.messages import list_steps


def _is_absent(value: object) -> bool:
    return value is None


class JobError(BaseModel):
    """Why a job failed: the code and detail of a problem."""

    model_config = ConfigDict(extra="allow")

    code: str
    detail: str


class Image(BaseModel):
    """The image of a job, and how the upload was converted."""

    digest: str = Field(description="Of the upload as a PNG without metadata.")
    width: int
    height: int
    conversions: tuple[str, ...] = ()


class Links(BaseModel):
    """Paths from the root."""

    self: str
    events: str
    cancel: str
    artifacts: dict[str, str]


class Job(BaseModel):
    """A job."""

    id: str
    kind: JobKind
    method: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempts: int
    model: ModelRef
    image: Image | None = Field(description="Null for a job without an image.")
    label: int | None = Field(None, exclude_if=_is_absent, description="The true class, where it was given.")
    target: int | None = Field(
        None, exclude_if=_is_absent, description="The class to reach, where one was given."
    )
    parameters: dict[str, Any]
    seed: int
    execution: Literal["batched", "deterministic"]
    deadline: float | None = Field(
        None, exclude_if=_is_absent, description="The most seconds that the job may run."
    )
    rerun_of: str | None = Field(None, exclude_if=_is_absent, description="The job that this one repeats.")
    continues: str | None = Field(
        None, exclude_if=_is_absent, description="The certificate that this job continues."
    )
    ahead: int | None = Field(
        None,
        ge=0,
        exclude_if=_is_absent,
        description="How many jobs wait before it; only of a queued job that is read by its id.",
    )
    progress: Progress
    phases: tuple[str, ...] | None = Field(
        None,
        exclude_if=_is_absent,
        description="What a registration does, in order: `progress.done` counts those that are done.",
    )
    result: dict[str, Any] | None
    error: JobError | None
    timings: Timings | None
    links: Links


ORIGINAL = "original.png"


def artifacts(job: records.Job) -> dict[str, str]:
    """The digests of a job's files by name; the image itself is there from the start."""
    files = {name: artifact.digest for name, artifact in job.artifacts.items()}
    image = job.submission.image
    return {ORIGINAL: image.digest, **files} if image else files


def path(job_id: str) -> str:
    """The path of a job."""
    return f"/v1/jobs/{job_id}"


def etag(job: records.Job | JobChange) -> str:
    """The entity tag of a job in its current version."""
    return f'"{job.id}.{job.version}"'


def show(job: records.Job, *, ahead: int | None = None) -> Job:
    """The job as responses show it."""
    asked = job.submission
    return Job(
        id=job.id,
        kind=asked.kind,
        method=asked.method,
        status=job.status,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        attempts=job.attempts,
        model=asked.model,
        image=_show_image(asked.image),
        label=asked.label,
        target=asked.target,
        parameters=asked.parameters,
        seed=asked.seed,
        execution=asked.execution,
        deadline=asked.deadline,
        rerun_of=asked.rerun_of,
        continues=asked.continues,
        ahead=ahead,
        progress=job.progress,
        phases=_list_phases(asked),
        result=job.result,
        error=JobError(code=job.error.code, detail=job.error.detail, **job.error.extra)
        if job.error
        else None,
        timings=job.timings,
        links=_links(job),
    )


def _list_phases(asked: records.Submission) -> tuple[str, ...] | None:
    """The steps of a trial; a remote model is not tried, but queried."""
    if asked.kind != "registration" or asked.parameters.get("kind") == "remote":
        return None
    return list_steps(examples=asked.examples is not None)


def _show_image(image: ImageRef | None) -> Image | None:
    if image is None:
        return None
    return Image(digest=image.digest, width=image.width, height=image.height, conversions=image.conversions)


def _links(job: records.Job) -> Links:
    here = path(job.id)
    files = {name: f"{here}/artifacts/{name}" for name in artifacts(job)}
    return Links(self=here, events=f"{here}/events", cancel=f"{here}/cancel", artifacts=files)
