"""A form with large files, streamed to the disk: none is ever in memory as a whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
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

ENVELOPE = 3 * MAX_TEXT
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
    """The parts of a form; the files among them that are on the disk, and their names at the sender."""

    parts: list[tuple[str, Value]]
    files: Mapping[str, SpooledFile]
    filenames: Mapping[str, str]


@asynccontextmanager
async def receive_form(
    request: Request, blobs: Blobs, limits: Mapping[str, int], *, total: int
) -> AsyncIterator[UploadedForm]:
    """Receive a form whose parts in `limits` are files of up to so many bytes; these are deleted at the end.

    A file over its limit is received to its end, so that its sender reads the response, but a form of more
    than `total` bytes and those of an envelope is not.
    """
    body_limits.allow(request, total + ENVELOPE)
    async with open_spools(blobs, limits) as sinks:
        form = await _read(request, sinks)
        sent = {name: sinks[name] for name in form.filenames() if name in sinks}
        for file in sent.values():
            await to_thread.run_sync(file.close)
        yield UploadedForm(form.parts(), sent, form.filenames())


@asynccontextmanager
async def open_spools(blobs: Blobs, limits: Mapping[str, int]) -> AsyncIterator[Mapping[str, SpooledFile]]:
    """Files on the disk with these limits, deleted at the end unless they were moved."""
    opened: dict[str, SpooledFile] = {}
    try:
        for name, limit in limits.items():
            opened[name] = await to_thread.run_sync(_open_spool, blobs, limit)
        yield opened
    finally:
        with CancelScope(shield=True):
            for file in opened.values():
                await to_thread.run_sync(file.discard)


def _open_spool(blobs: Blobs, limit: int) -> SpooledFile:
    with map_disk_errors():
        handle, path = tempfile.mkstemp(dir=blobs.incoming_folder(), prefix="upload-")
    os.close(handle)
    return SpooledFile(Path(path), limit)


async def _read(request: Request, sinks: Mapping[str, Sink]) -> Form:
    bodies.check_type(request, bodies.MULTIPART)
    chunks = _chunks(request)
    try:
        form = Form(request.headers["content-type"], sinks=sinks, limits=FormLimits(MAX_TEXT, MAX_TEXT))
        async for chunk in chunks:
            await to_thread.run_sync(form.feed, chunk)
        form.parts()  # raises where it has no end
        return form
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
