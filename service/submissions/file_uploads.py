"""A form with a large file, streamed to the disk: the file is never in memory as a whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anyio import CancelScope, to_thread
from fastapi import Request
from starlette.exceptions import HTTPException

from service.http import body_limits
from service.submissions import bodies
from service.submissions.multipart import Form, FormError, FormLimits, Sink, Value
from touchstone.errors import StorageFull
from touchstone.storage.blobs import Blobs, map_disk_errors

MAX_TEXT = 8 * 2**20
"""The most bytes of a part that is not the file."""

ENVELOPE = 2 * MAX_TEXT
"""The most bytes of a body besides the file."""

CHUNK = 2**20


@dataclass
class SpooledFile:
    """A file on the disk with its digest; bytes beyond `limit` are counted and not written."""

    path: Path
    limit: int
    size: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._file: BinaryIO = self.path.open("wb")

    @property
    def digest(self) -> str:
        """The digest of the bytes written."""
        return f"sha256:{self._digest.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Write the next bytes."""
        self.size += len(data)
        if self.size <= self.limit:
            self._digest.update(data)
            with map_disk_errors():
                self._file.write(data)

    def close(self) -> None:
        """Flush and close the file."""
        with map_disk_errors():
            self._file.close()

    def discard(self) -> None:
        """Delete the file, unless it was moved."""
        with suppress(OSError):  # a failed write does not matter any more
            self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class UploadedForm:
    """The parts of a form, and its file."""

    parts: list[tuple[str, Value]]
    file: SpooledFile


@asynccontextmanager
async def receive_form(
    request: Request, blobs: Blobs, *, name: str, limit: int
) -> AsyncIterator[UploadedForm]:
    """Receive a form whose part `name` is a file of up to `limit` bytes; the file is deleted at the end.

    A larger one is received to its end, so that its sender reads the response.
    """
    body_limits.allow(request, limit + ENVELOPE)
    saved = await to_thread.run_sync(_open_spool, blobs, limit)
    try:
        parts = await _read(request, {name: saved})
        await to_thread.run_sync(saved.close)
        yield UploadedForm(parts, saved)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(saved.discard)


def _open_spool(blobs: Blobs, limit: int) -> SpooledFile:
    with map_disk_errors():
        handle, path = tempfile.mkstemp(dir=blobs.incoming_folder(), prefix="upload-")
    os.close(handle)
    return SpooledFile(Path(path), limit)


async def _read(request: Request, sinks: dict[str, Sink]) -> list[tuple[str, Value]]:
    bodies.check_type(request, bodies.MULTIPART)
    chunks = _chunks(request)
    try:
        form = Form(request.headers["content-type"], sinks=sinks, limits=FormLimits(MAX_TEXT, MAX_TEXT))
        async for chunk in chunks:
            await to_thread.run_sync(form.feed, chunk)
        return form.parts()
    except (FormError, StorageFull) as error:
        async for _ in chunks:
            pass  # a client that still sends would not read the response
        if isinstance(error, StorageFull):
            raise
        raise HTTPException(400, str(error)[:200]) from None


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in chunks large enough to be worth a call in a thread."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)
