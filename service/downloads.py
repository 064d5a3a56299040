"""Files of a job, whole or in part."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from anyio import to_thread
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from service import schemas
from service.state.backend import TenantBackend
from touchstone.errors import UnknownArtifact
from touchstone.ledger.records import Job
from touchstone.storage.blobs import Blobs

CHUNK = 2**20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes within a file."""

    start: int
    length: int


@dataclass(frozen=True)
class ArtifactFile:
    """A job's file: a blob and its name."""

    name: str
    digest: str
    media_type: str
    size: int

    def headers(self, job: Job) -> dict[str, str]:
        """Headers of the file, the same for every part of it."""
        shown = "inline" if self.media_type == "image/png" else "attachment"
        name = _UNSAFE.sub("_", f"{job.id}-{self.name}")
        return {
            "ETag": f'"{self.digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Disposition": f'{shown}; filename="{name}"',
        }


def find_file(backend: TenantBackend, job: Job, name: str) -> ArtifactFile:
    """The job's file of this name; raises `UnknownArtifact`, which lists the names that exist."""
    files = schemas.artifacts(job)
    if name not in files:
        raise UnknownArtifact(
            f"the job has no artifact {name[:60]!r}; it has {', '.join(files) or 'none'}", field="name"
        )
    digest = files[name]
    known = job.artifacts.get(name)
    media_type = known.media_type if known else "image/png"
    return ArtifactFile(name, digest, media_type, known.size if known else backend.blobs.size(digest))


async def build_file_response(backend: TenantBackend, job: Job, name: str) -> Response:
    """A response with a job's whole file."""
    file = await to_thread.run_sync(find_file, backend, job, name)
    return await send(backend.blobs, file, ByteRange(0, file.size), file.headers(job))


async def send(
    blobs: Blobs, file: ArtifactFile, byte_range: ByteRange, headers: Mapping[str, str], *, status: int = 200
) -> Response:
    """A response with a part of a file, streamed in chunks where it is large."""
    first = await to_thread.run_sync(blobs.read, file.digest, byte_range.start, min(byte_range.length, CHUNK))
    if byte_range.length <= CHUNK:
        return Response(first, status, dict(headers), file.media_type)

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        end = byte_range.start + byte_range.length
        for place in range(byte_range.start + CHUNK, end, CHUNK):
            yield await to_thread.run_sync(blobs.read, file.digest, place, min(CHUNK, end - place))

    length = {"Content-Length": str(byte_range.length)}
    return StreamingResponse(chunks(), status, {**headers, **length}, file.media_type)


def parse_range(header: str | None, condition: str | None, file: ArtifactFile) -> ByteRange | None:
    """The requested range; None means the whole file.

    More than one range, a malformed one, and one whose `If-Range` does not hold are ignored, as RFC 9110
    permits; one that begins after the end is a 416.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or (condition and condition != f'"{file.digest}"'):
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is None:
        return None if last is None else _suffix_range(last, file)
    if last is not None and last < first:
        return None
    if first >= file.size:
        raise _unsatisfiable(file)
    end = file.size if last is None else min(last + 1, file.size)
    return ByteRange(first, end - first)


def _suffix_range(length: int, file: ArtifactFile) -> ByteRange:
    if length == 0 or file.size == 0:
        raise _unsatisfiable(file)
    length = min(length, file.size)
    return ByteRange(file.size - length, length)


def _unsatisfiable(file: ArtifactFile) -> HTTPException:
    detail = f"Range: {file.name} has {file.size} bytes, and the range lies outside of them"
    return HTTPException(416, detail, {"Content-Range": f"bytes */{file.size}"})
