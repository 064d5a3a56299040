"""Images and arrays, named by the SHA-256 of their bytes, in a local folder or in object storage."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import ObjectStore, from_url

from touchstone.errors import UnknownArtifact
from touchstone.settings import Settings

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Blobs(Protocol):
    """Bytes by digest, which never change once put. What is not there raises `UnknownArtifact`."""

    def put(self, data: bytes) -> str:
        """Store bytes for good before returning their digest; bytes already there are not written again."""

    def get(self, digest: str) -> bytes:
        """All bytes of a blob, checked against its digest."""

    def read(self, digest: str, start: int, length: int) -> bytes:
        """Some bytes of a blob; fewer where it ends earlier."""

    def size(self, digest: str) -> int:
        """How many bytes a blob has."""


def digest_of(data: bytes) -> str:
    """The name of these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _place(digest: str) -> str:
    """Where a blob lies: two levels of folders, so that none grows too large."""
    if not _DIGEST.fullmatch(digest):
        raise _missing(digest)
    name = digest.removeprefix("sha256:")
    return f"{name[:2]}/{name[2:4]}/{name}"


def _missing(digest: str) -> UnknownArtifact:
    return UnknownArtifact(f"there are no bytes with the digest {digest[:80]!r}")


def _checked(digest: str, data: bytes) -> bytes:
    if digest_of(data) != digest:
        raise UnknownArtifact(f"the bytes of {digest} are damaged")
    return data


class FolderBlobs:
    """Blobs as files below `root`; a file is complete and on the disk before it has its name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        path = self._root / _place(digest)
        if not (path.exists() and path.stat().st_size == len(data)):
            _make_folders(path.parent)
            _write(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        try:
            return _checked(digest, self._path(digest).read_bytes())
        except FileNotFoundError:
            raise _missing(digest) from None

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""
        try:
            with self._path(digest).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            raise _missing(digest) from None

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def _path(self, digest: str) -> Path:
        return self._root / _place(digest)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before the next."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _sync(folder.parent)


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StoreBlobs:
    """Blobs as objects in S3 or its like."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        with suppress(AlreadyExistsError):
            obstore.put(self._store, _place(digest), data, mode="create")
        return digest

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        try:
            return _checked(digest, bytes(obstore.get(self._store, _place(digest)).bytes()))
        except (NotFoundError, FileNotFoundError):
            raise _missing(digest) from None

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""
        length = min(length, self.size(digest) - start)
        if length <= 0:
            return b""
        return bytes(obstore.get_range(self._store, _place(digest), start=start, length=length))

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        try:
            return int(obstore.head(self._store, _place(digest))["size"])
        except (NotFoundError, FileNotFoundError):
            raise _missing(digest) from None


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name: `home`/blobs, or a bucket."""
    if settings.blobs_url:
        return StoreBlobs(from_url(settings.blobs_url))
    return FolderBlobs(settings.home / "blobs")
