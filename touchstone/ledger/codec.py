"""How jobs are stored in the ledger: a hash of strings, JSON for structures, times in milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from touchstone.errors import UnreadableJob
from touchstone.ledger.large_values import decode_reference, encode_reference, encode_value
from touchstone.ledger.records import (
    Artifact,
    Job,
    JobFailure,
    LargeValue,
    Progress,
    Submission,
    Timings,
)
from touchstone.logs import get_logger
from touchstone.models.measurements import Probe

_MAX_ERROR, _MAX_CUT_ERROR = 4000, 1000
_LARGE_FIELDS: Mapping[str, str] = MappingProxyType(
    {"parameters": "parameters_blob", "result": "result_blob"}
)

DECODE_ERRORS = (ValueError, TypeError, LookupError, AttributeError)
"""What decoding raises where another version wrote a record differently, or something damaged it."""

_MAX_UNREADABLE = 10_000

T = TypeVar("T")
R = TypeVar("R")

_log = get_logger("ledger")
_unreadable: set[tuple[str, str]] = set()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decode_time(milliseconds: str) -> datetime:
    """The time that the ledger's clock showed."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def encode_time(time: datetime) -> int:
    """The first tick of the ledger's clock that is not before this time."""
    return -((_EPOCH - time) // timedelta(milliseconds=1))


def decode_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Names and values in turn, as a dictionary."""
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def name_pairs(found: Iterable[Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Each record as names and values in turn, with its id before it."""
    return ((decode_pairs(pairs).get("id", ""), pairs) for pairs in found)


def decode_each(kind: str, decode: Callable[[T], R], found: Iterable[tuple[str, T]]) -> list[R]:
    """The records of a list, given with their ids. One that cannot be read is left out and logged once, so
    that it spoils no list.
    """
    decoded: list[R] = []
    for name, stored in found:
        try:
            decoded.append(decode(stored))
        except DECODE_ERRORS as error:
            log_unreadable(kind, name, error)
    return decoded


def log_unreadable(kind: str, name: str, error: Exception) -> None:
    """Log once in this process that a record cannot be read, without its values."""
    if (kind, name) in _unreadable or len(_unreadable) >= _MAX_UNREADABLE:
        return
    _unreadable.add((kind, name))
    places = (
        [".".join(map(str, one["loc"])) for one in error.errors(include_input=False)]
        if isinstance(error, ValidationError)
        else [type(error).__name__]
    )
    _log.warning("a record cannot be read", kind=kind, id=name, reason=", ".join(places[:10]))


def decode_job(pairs: Sequence[str]) -> Job:
    """Read a job from the names and values of its hash, without its large values."""
    stored = decode_pairs(pairs)
    return Job(
        id=stored["id"],
        version=int(stored["version"]),
        status=stored["status"],
        submission=Submission.model_validate_json(stored["submission"]),
        created_at=decode_time(stored["created_at"]),
        started_at=_decode_optional_time(stored.get("started_at")),
        finished_at=_decode_optional_time(stored.get("finished_at")),
        attempts=int(stored["attempts"]),
        claims=int(stored["claims"]),
        losses=int(stored.get("losses", 0)),
        strikes=int(stored.get("strikes", 0)),
        retries=int(stored.get("retries", 0)),
        cancel_requested=stored["cancel"] == "1",
        progress=Progress(done=int(stored["done"]), total=int(stored["total"])),
        **_decode_outcome(stored),
        large={
            name: decode_reference(stored[field]) for name, field in _LARGE_FIELDS.items() if field in stored
        },
    )


def read_job(name: str, stored: Mapping[str, str]) -> Job:
    """Read a job from its hash, as `decode_job` does; raises `UnreadableJob` where it cannot be read."""
    try:
        return decode_job([text for pair in stored.items() for text in pair])
    except DECODE_ERRORS as error:
        log_unreadable("job", name, error)
        raise UnreadableJob.for_id(name) from error


def build_new_job(name: str, version: int, submission: Submission, created_at: int) -> Job:
    """The job as `decode_job` would read it right after its acceptance."""
    return Job(
        id=name,
        version=version,
        status="queued",
        submission=submission,
        created_at=decode_time(str(created_at)),
    )


def _decode_optional_time(milliseconds: str | None) -> datetime | None:
    return None if milliseconds is None else decode_time(milliseconds)


def _decode_outcome(stored: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: json.loads(stored[name])
        for name in ("result", "error", "timings", "artifacts")
        if name in stored
    }


def encode_metric(values: Mapping[str, float] | None) -> str:
    """A metric as JSON, without the numbers that JSON cannot hold; empty where none is left."""
    finite = {name: value for name, value in (values or {}).items() if math.isfinite(value)}
    return json.dumps(finite) if finite else ""


def encode_report(progress: Progress, values: Mapping[str, float] | None) -> tuple[int, int, str]:
    """Progress and metric, as scripts take them."""
    return progress.done, progress.total, encode_metric(values)


def decode_probe(stored: str | None) -> Probe | None:
    """Read a probe; none where a worker of another version wrote it differently."""
    try:
        return Probe.model_validate_json(stored) if stored else None
    except ValidationError:
        return None


def _encode_result(result: Mapping[str, Any] | LargeValue | None) -> dict[str, str]:
    if isinstance(result, LargeValue):
        return {"result_blob": encode_reference(result)}
    return {} if result is None else {"result": encode_value(result)}


def _encode_error(error: JobFailure) -> str:
    """An error as JSON; where that is long, its sentence is cut and the rest is left out."""
    text = error.model_dump_json()
    if len(text) <= _MAX_ERROR:
        return text
    return JobFailure(code=error.code, detail=error.detail[:_MAX_CUT_ERROR]).model_dump_json()


def encode_outcome(
    result: Mapping[str, Any] | LargeValue | None,
    error: JobFailure | None,
    timings: Timings | None,
    artifacts: Mapping[str, Artifact],
) -> list[str]:
    """The fields that a finished job gains, as names and JSON in turn."""
    files = {name: artifact.model_dump(mode="json") for name, artifact in artifacts.items()}
    parts: dict[str, str | None] = {
        **_encode_result(result),
        "error": None if error is None else _encode_error(error),
        "timings": None if timings is None else timings.model_dump_json(),
        "artifacts": encode_value(files) if files else None,
    }
    return [text for name, value in parts.items() if value is not None for text in (name, value)]
