"""A form with a large file, taken in as it comes: the file goes to the disk, never to memory as a whole."""

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
"""What a body may have besides the file."""

CHUNK = 2**20


@dataclass
class SpooledFile:
    """A file on the disk with the digest of what came; beyond `limit` bytes it is counted and not written."""

    path: Path
    limit: int
    size: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._file: BinaryIO = self.path.open("wb")

    @property
    def digest(self) -> str:
        """The name of the bytes."""
        return f"sha256:{self._digest.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        if self.size <= self.limit:
            self._digest.update(data)
            with map_disk_errors():
                self._file.write(data)

    def close(self) -> None:
        """Write what is left to write."""
        with map_disk_errors():
            self._file.close()

    def discard(self) -> None:
        """Delete the file, unless it was taken away."""
        with suppress(OSError):  # of what could not be written nothing is wanted any more
            self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class UploadedForm:
    """The parts of a form, its file apart."""

    parts: list[tuple[str, Value]]
    file: SpooledFile


@asynccontextmanager
async def receive_form(
    request: Request, blobs: Blobs, *, name: str, limit: int
) -> AsyncIterator[UploadedForm]:
    """Take a form in whose part `name` is a file of up to `limit` bytes; the file is deleted at the end.

    One that is larger is heard out, so that its sender gets to read why it is refused.
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
            pass  # a client that still sends would take the answer for a fault
        if isinstance(error, StorageFull):
            raise
        raise HTTPException(400, str(error)[:200]) from None


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a thread's while."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)
