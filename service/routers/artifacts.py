"""The files that a job leaves, whole or in part; what a name stands for never changes, so caches keep it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from service import headers as preferences
from service import problems, schemas
from service.auth.permissions import reader
from service.dependencies import KnownJob
from service.state.backend import Backend, backend_of
from touchstone.errors import UnknownArtifact
from touchstone.ledger.records import Job
from touchstone.storage.blobs import Blobs

router = APIRouter(tags=["jobs"], dependencies=[reader])

CHUNK = 2**20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Span:
    """A run of bytes within a file."""

    start: int
    length: int


@dataclass(frozen=True)
class File:
    """A job's file: a blob, and how it is called."""

    name: str
    digest: str
    media_type: str
    size: int

    def headers(self, job: Job) -> dict[str, str]:
        """What is said of the file, whichever part of it is sent."""
        shown = "inline" if self.media_type == "image/png" else "attachment"
        name = _UNSAFE.sub("_", f"{job.id}-{self.name}")
        return {
            "ETag": f'"{self.digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Disposition": f'{shown}; filename="{name}"',
        }


def find(backend: Backend, job: Job, name: str) -> File:
    """The job's file of this name; `UnknownArtifact` tells which there are."""
    files = schemas.artifacts(job)
    if name not in files:
        raise UnknownArtifact(
            f"the job has no artifact {name[:60]!r}; it has {', '.join(files) or 'none'}", field="name"
        )
    digest = files[name]
    known = job.artifacts.get(name)
    media_type = known.media_type if known else "image/png"
    return File(name, digest, media_type, known.size if known else backend.blobs.size(digest))


async def whole(backend: Backend, job: Job, name: str) -> Response:
    """A job's file from end to end."""
    file = await to_thread.run_sync(find, backend, job, name)
    return await _send(backend.blobs, file, Span(0, file.size), file.headers(job))


async def _send(
    blobs: Blobs, file: File, span: Span, headers: Mapping[str, str], *, status: int = 200
) -> Response:
    first = await to_thread.run_sync(blobs.read, file.digest, span.start, min(span.length, CHUNK))
    if span.length <= CHUNK:
        return Response(first, status, dict(headers), file.media_type)

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        end = span.start + span.length
        for place in range(span.start + CHUNK, end, CHUNK):
            yield await to_thread.run_sync(blobs.read, file.digest, place, min(CHUNK, end - place))

    length = {"Content-Length": str(span.length)}
    return StreamingResponse(chunks(), status, {**headers, **length}, file.media_type)


def part(header: str | None, condition: str | None, file: File) -> Span | None:
    """The range asked for; None means the whole file.

    More than one range, a malformed one, and one whose `If-Range` does not hold are ignored, as RFC 9110
    permits; one that begins after the end is a 416.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or (condition and condition != f'"{file.digest}"'):
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is None:
        return None if last is None else _tail(last, file)
    if last is not None and last < first:
        return None
    if first >= file.size:
        raise _outside(file)
    end = file.size if last is None else min(last + 1, file.size)
    return Span(first, end - first)


def _tail(length: int, file: File) -> Span:
    if length == 0 or file.size == 0:
        raise _outside(file)
    length = min(length, file.size)
    return Span(file.size - length, length)


def _outside(file: File) -> HTTPException:
    detail = f"Range: {file.name} has {file.size} bytes, and the range lies outside of them"
    return HTTPException(416, detail, {"Content-Range": f"bytes */{file.size}"})


_CONTENT = {
    "image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}, "example": "(a PNG file)"},
    "application/octet-stream": {
        "schema": {"type": "string", "contentMediaType": "application/octet-stream"}
    },
}
Name = Annotated[
    str,
    Path(
        description="As the job's links name it.",
        examples=["adversarial.png"],
        json_schema_extra={"pattern": r"^[a-z]+\.(png|npy|json)$"},
    ),
]


@router.get(
    "/v1/jobs/{job}/artifacts/{name}",
    operation_id="get_artifact",
    summary="A file that the job left",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": _CONTENT},
        206: {"description": "A part of the file.", "content": _CONTENT},
        304: {"description": "The client has it already."},
        **problems.responses(404, 416, 422),
    },
)
async def get_artifact(
    request: Request,
    job: KnownJob,
    name: Name,
    *,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    if_range: Annotated[str | None, Header(description="Send a part only of this entity.")] = None,
    if_none_match: preferences.IfNoneMatch = None,
) -> Response:
    """The image that was judged, what it was before, their difference, or the exact numbers as `.npy`."""
    backend = backend_of(request)
    file = await to_thread.run_sync(find, backend, job, name)
    headers = file.headers(job)
    if preferences.matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(file.size)}, media_type=file.media_type)
    span = part(range_, if_range, file)
    if span is None:
        return await _send(backend.blobs, file, Span(0, file.size), headers)
    headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{file.size}"
    return await _send(backend.blobs, file, span, headers, status=206)


router.add_api_route(
    "/v1/jobs/{job}/artifacts/{name}", get_artifact, methods=["HEAD"], include_in_schema=False
)
