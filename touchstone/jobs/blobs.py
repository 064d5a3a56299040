"""Images and arrays, named by the SHA-256 of their bytes, in a local folder or in object storage."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import ObjectStore, from_url

from touchstone.errors import UnknownArtifact
from touchstone.settings import Settings

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_AT_ONCE = 16
_FORGOTTEN_SECONDS = 86_400


class Blobs(Protocol):
    """Bytes by digest, which never change once put. What is not there raises `UnknownArtifact`."""

    def put(self, data: bytes) -> str:
        """Store bytes for good before returning their digest; bytes already there are not written again."""

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """Store several at once, in hardly more time than one."""

    def incoming(self) -> Path:
        """A folder to write files to that `put_file` shall take."""

    def put_file(self, file: Path, digest: str) -> None:
        """Store a file for good, without reading it to memory; where it was, it is gone or may be deleted.

        Its digest is believed: whoever wrote the file has computed it on the way.
        """

    def get(self, digest: str) -> bytes:
        """All bytes of a blob, checked against its digest."""

    def read(self, digest: str, start: int, length: int) -> bytes:
        """Some bytes of a blob; fewer where it ends earlier."""

    def size(self, digest: str) -> int:
        """How many bytes a blob has."""

    def forget(self, digest: str) -> None:
        """Delete a blob that nobody else can have put; one that is not there is no fault."""


def digest_of(data: bytes) -> str:
    """The name of these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _place(digest: str) -> str:
    """Where a blob lies: in one of 256 folders, so that none grows too large."""
    if not _DIGEST.fullmatch(digest):
        raise _missing(digest)
    name = digest.removeprefix("sha256:")
    return f"{name[:2]}/{name}"


def _missing(digest: str) -> UnknownArtifact:
    return UnknownArtifact(f"there are no bytes with the digest {digest[:80]!r}")


def _checked(digest: str, data: bytes) -> bytes:
    if digest_of(data) != digest:
        raise UnknownArtifact(f"the bytes of {digest} are damaged")
    return data


class FolderBlobs:
    """Blobs as files below `root`.

    A file is complete and on the disk before it has its name; its name is on the disk before `put` returns.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ready = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        return self.put_many([data])[0]

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        self._make_folders()
        digests = [digest_of(data) for data in files]
        paths = [self._path(digest) for digest in digests]
        new = {path: data for path, data in zip(paths, files, strict=True) if not _is_there(path, data)}
        self._each(_write, new.items())
        # A name that was there before may be another's, who has yet to bring it to the disk.
        self._each(_sync, {(path.parent,) for path in paths})
        return digests

    def incoming(self) -> Path:
        """See `Blobs.incoming`."""
        self._make_folders()
        folder = self._root / "incoming"
        folder.mkdir(mode=0o700, exist_ok=True)
        _tidy(folder)
        return folder

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`."""
        path = self._path(digest)
        _sync(file)
        os.replace(file, path)
        _sync(path.parent)

    def _each(self, action: Callable[..., None], calls: Collection[tuple[Any, ...]]) -> None:
        """Do something for each at the same time, because what takes long is the disk."""
        if len(calls) == 1:
            action(*next(iter(calls)))
        else:
            list(self._threads.map(lambda call: action(*call), calls))

    def _make_folders(self) -> None:
        """Make all folders before the first blob, so that none has to be brought to the disk later."""
        with self._lock:
            if not self._ready:
                _make_folder(self._root)
                for first in range(256):
                    (self._root / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
                _sync(self._root)
                self._ready = True

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

    def forget(self, digest: str) -> None:
        """See `Blobs.forget`."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._root / _place(digest)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def _tidy(folder: Path) -> None:
    """Delete what a process left behind that was killed."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > _FORGOTTEN_SECONDS:
                file.unlink()


def _is_there(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data)
    except FileNotFoundError:
        return False


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StoreBlobs:
    """Blobs as objects in S3 or its like."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(_AT_ONCE, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        with suppress(AlreadyExistsError):
            obstore.put(self._store, _place(digest), data, mode="create")
        return digest

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        return list(self._threads.map(self.put, files))

    def incoming(self) -> Path:
        """See `Blobs.incoming`."""
        return Path(tempfile.gettempdir())

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`; large ones go in several parts."""
        obstore.put(self._store, _place(digest), file)

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

    def forget(self, digest: str) -> None:
        """See `Blobs.forget`."""
        with suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, _place(digest))


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name: `home`/blobs, or a bucket."""
    if settings.blobs_url:
        return StoreBlobs(from_url(settings.blobs_url))
    return FolderBlobs(settings.home / "blobs")
