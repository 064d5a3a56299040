"""The records of a job: its submission, its state and its result."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from touchstone.fields import Seed

JobKind = Literal["attack", "certificate", "prediction", "registration", "inference"]
FILE_KINDS: frozenset[JobKind] = frozenset({"registration", "inference"})
"""Kinds of jobs that work on a file that is no image."""
LOCAL = "local"
"""The tenant of requests that need no key."""
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "canceled"})


MAX_VALUE_BYTES = 8 * 2**10
"""The most bytes of one value of a record in the ledger, parameters or result, as JSON: a larger one is a
blob. Those of most jobs have one to three kilobytes.
"""


class Record(BaseModel):
    """Immutable. Fields that a newer version added are ignored: what must not be, has another schema."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelRef(Record):
    """A model by name and by content."""

    id: str
    digest: str


class ImageRef(Record):
    """The canonical PNG that a job works on: its blob, and how the upload was converted to it."""

    digest: str
    width: int
    height: int
    channels: Literal[1, 3]
    conversions: tuple[str, ...] = ()


class ExamplesRef(Record):
    """Labelled images that a model is tried with: the blob of a zip of PNGs, its bytes, and their classes."""

    digest: str
    size: int
    labels: tuple[int, ...]


def _source_of(kind: JobKind) -> str:
    return "file" if kind in FILE_KINDS else "image"


class LargeValue(Record):
    """A value of a record that is too large for the ledger: the digest of its blob, and its bytes."""

    digest: str
    size: int


class Submission(Record):
    """What a client submitted, with every parameter resolved; it never changes after it was accepted."""

    tenant: str = Field(LOCAL, description="The tenant that owns the job: no other sees it.")
    kind: JobKind
    method: str
    model: ModelRef
    image: ImageRef | None = None
    file: str | None = Field(None, description="Digest of the file, where the job works on no image.")
    examples: ExamplesRef | None = Field(None, description="Examples, where a model is tried with any.")
    parameters: dict[str, Any]
    seed: Seed = 0
    label: int | None = None
    target: int | None = None
    execution: Literal["batched", "deterministic"] = "batched"
    deadline: float | None = Field(None, gt=0, description="Seconds the job may run.")
    webhook: str | None = Field(None, description="URL to which the job's end is delivered.")
    rerun_of: str | None = None
    continues: str | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Submission:
        wanted, other = (self.file, self.image) if self.kind in FILE_KINDS else (self.image, self.file)
        if wanted is None or other is not None:
            raise ValueError(f"a job of kind {self.kind} works on one {_source_of(self.kind)}")
        return self

    @property
    def source(self) -> str:
        """The digest of the blob that the job works on."""
        return self.image.digest if self.image else str(self.file)


_CONTAINER_BYTES = 2**12
"""More than the headers of all files of a job, and than a PNG adds to bytes that cannot be compressed."""


_NAMED_CLASS_BYTES = 2**10
"""More than a class in a prediction: a name of 200 characters, and its numbers."""


def max_output_bytes(submission: Submission) -> int:
    """The most bytes that the files of a job have: two images and the floats of one; of other jobs, a result
    that may be too large for the ledger.
    """
    if submission.kind in ("prediction", "registration"):
        return _large_output_bytes(submission)
    if submission.kind != "attack" or submission.image is None:
        return 0
    values = submission.image.width * submission.image.height * submission.image.channels
    return _CONTAINER_BYTES + values * (2 + 4) + values // 4


def _large_output_bytes(submission: Submission) -> int:
    """The most bytes of a prediction's result, or of what a registration leaves: the manifest, in its result
    and in a version.
    """
    if submission.kind == "prediction":
        size = int(submission.parameters.get("top", 0)) * _NAMED_CLASS_BYTES
    else:
        size = 2 * len(submission.model_dump_json(include={"parameters"}).encode())
    return size if size > MAX_VALUE_BYTES else 0


class Progress(Record):
    """Steps done and steps planned."""

    done: int = 0
    total: int = 0


class JobFailure(Record):
    """Why a job failed: a code of `touchstone.errors` and a sentence."""

    code: str
    detail: str
    extra: dict[str, Any] = {}


class Timings(Record):
    """Seconds that a job spent in each of its phases."""

    queued: float = 0.0
    prepare: float = 0.0
    compute: float = 0.0
    write: float = 0.0


class Artifact(Record):
    """A file that a job stored: a blob and its media type."""

    digest: str
    media_type: str
    size: int


class Job(Record):
    """A job as the ledger holds it. `version` rises with every change."""

    id: str
    version: int
    status: Status
    submission: Submission
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    claims: int = Field(
        0, description="Claims so far, released ones included: a fencing token against stale workers."
    )
    losses: int = Field(
        0, description="0 to 3: how often its worker was lost; a suspect runs with few others, at 3 alone."
    )
    strikes: int = Field(0, description="How often a process was lost in which it ran alone as a suspect.")
    retries: int = Field(0, description="How often it was left to another attempt for reasons outside of it.")
    cancel_requested: bool = False
    progress: Progress = Progress()
    result: dict[str, Any] | None = None
    error: JobFailure | None = None
    timings: Timings | None = None
    artifacts: dict[str, Artifact] = {}
    large: dict[Literal["parameters", "result"], LargeValue] = Field(
        {}, description="Values that are not here but in blobs; none once the job is complete."
    )
