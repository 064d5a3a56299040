"""Request headers: how long a client waits, the form it wants, the version it has already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from service.state.job_waiters import MAX_WAIT_SECONDS
from touchstone.errors import InvalidParameter

APPLIED = {"Preference-Applied": "wait"}


async def read_wait_seconds(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N`, at most a minute; RFC 7240 wants malformed preferences ignored."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
                return min(int(value[:9]), MAX_WAIT_SECONDS)
    return None


def wants_png(request: Request) -> bool:
    """Whether the client accepts PNG and does not prefer JSON."""
    weights = _weights(request.headers.get("accept", ""))
    png = weights.get("image/png", weights.get("image/*", 0.0))
    return png > 0 and png >= weights.get("application/json", 0.0)


def _weights(accept: str) -> dict[str, float]:
    weights = {}
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights[media] = next((_parse_weight(part[2:]) for part in parameters if part.startswith("q=")), 1.0)
    return weights


def _parse_weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def matches(condition: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` names this entity tag; it compares weakly, as RFC 9110 wants."""
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or etag in tags


async def read_idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key, 1 to 255 visible ASCII characters, if there is one."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and all("!" <= char <= "~" for char in key)):
        raise InvalidParameter(
            "Idempotency-Key: expected 1 to 255 visible ASCII characters", field="Idempotency-Key"
        )
    return key


WaitSeconds = Annotated[int | None, Depends(read_wait_seconds)]
IdempotencyKey = Annotated[str | None, Depends(read_idempotency_key)]


@dataclass(frozen=True)
class SubmissionHeaders:
    """The values of a submission's headers."""

    idempotency_key: str | None
    wait_seconds: int | None
    wants_png: bool


async def read_submission_headers(
    request: Request, key: IdempotencyKey, seconds: WaitSeconds
) -> SubmissionHeaders:
    """The headers of a submission."""
    return SubmissionHeaders(key, seconds, wants_png(request))


Preferences = Annotated[SubmissionHeaders, Depends(read_submission_headers)]
IfNoneMatch = Annotated[str | None, Header(description="Answer 304 where this is still the entity tag.")]
