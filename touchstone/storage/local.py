"""Blobs in a local folder."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from touchstone.digests import digest_of
from touchstone.errors import StorageFull
from touchstone.storage.layout import ASIDE, AT_ONCE, OWNER, Aside, aside_of, checked, missing, place, places

_HALF_WRITTEN = ".new-"
_FORGOTTEN_SECONDS = 86_400
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


@contextmanager
def storing() -> Iterator[None]:
    """Turn a disk that is full into `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull("there is no room left on the disk to store files; try again later") from error


class FolderBlobs:
    """Blobs as files below `root`.

    A file is complete and on the disk before it has its name; its name is on the disk before `put` returns.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ready = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(AT_ONCE, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        return self.put_many([data])[0]

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        digests = [digest_of(data) for data in files]
        paths = [self._path(digest) for digest in digests]
        with storing():
            self._make_folders()
            new = {path: data for path, data in zip(paths, files, strict=True) if not _is_there(path, data)}
            self._each(_write, new.items())
            # A name that was there before may be another's, who has yet to bring it to the disk.
            self._each(_sync, {(path.parent,) for path in paths})
        return digests

    def incoming(self) -> Path:
        """See `Blobs.incoming`."""
        with storing():
            self._make_folders()
            folder = self._root / "incoming"
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`."""
        path = self._path(digest)
        with storing():
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
        return checked(digest, self._reach(digest, Path.read_bytes))

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""

        def part(path: Path) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        return self._reach(digest, part)

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        return self._reach(digest, lambda path: path.stat().st_size)

    def _reach(self, digest: str, action: Callable[[Path], T]) -> T:
        """Do something with a blob's file, wherever it lies at the moment."""
        for where in places(digest, self.aside):
            with suppress(FileNotFoundError):
                return action(self._root / where)
        raise missing(digest)

    def forget(self, digest: str) -> None:
        """See `Blobs.forget`."""
        self._path(digest).unlink(missing_ok=True)

    def set_aside(self, digest: str, at: int) -> None:
        """See `Blobs.set_aside`."""
        with suppress(FileNotFoundError):
            (self._root / ASIDE).mkdir(mode=0o700, exist_ok=True)
            self._path(digest).rename(self._root / Aside(digest, at).place)

    def aside(self) -> Iterator[Aside]:
        """See `Blobs.aside`."""
        for file in _files(self._root / ASIDE):
            yield from aside_of(file.name)

    def restore(self, aside: Aside) -> None:
        """See `Blobs.restore`."""
        path = self._path(aside.digest)
        with suppress(FileNotFoundError):
            (self._root / aside.place).replace(path)
            _sync(path.parent)

    def drop(self, aside: Aside) -> None:
        """See `Blobs.drop`."""
        (self._root / aside.place).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Iterator[str]:
        """See `Blobs.older_than`."""
        for folder in self._root.glob("??"):
            for file in _files(folder):
                if not file.name.startswith(_HALF_WRITTEN) and _is_older(file, seconds):
                    yield f"sha256:{file.name}"

    def tidy(self) -> None:
        """See `Blobs.tidy`."""
        delete_forgotten(self._root / "incoming", "*")
        delete_forgotten(self._root, f"??/{_HALF_WRITTEN}*")

    def owner(self, name: str) -> str:
        """See `Blobs.owner`."""
        path = self._root / OWNER
        if not path.exists():
            with storing():
                self._make_folders()
                _write(path, name.encode())
        return path.read_text()

    def free(self) -> int:
        """See `Blobs.free`."""
        there = next(folder for folder in (self._root, *self._root.absolute().parents) if folder.exists())
        disk = os.statvfs(there)
        return disk.f_bavail * disk.f_frsize

    def _path(self, digest: str) -> Path:
        return self._root / place(digest)


def delete_forgotten(folder: Path, pattern: str) -> None:
    """Delete files of this pattern on which nobody has worked for long."""
    for file in folder.glob(pattern):
        if _is_older(file, _FORGOTTEN_SECONDS):
            file.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def _files(folder: Path) -> Iterator[Path]:
    """What is in a folder, if it is there."""
    with suppress(FileNotFoundError):
        yield from folder.iterdir()


def _is_older(file: Path, seconds: float) -> bool:
    try:
        return time.time() - file.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def _is_there(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data)
    except FileNotFoundError:
        return False


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_HALF_WRITTEN)
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
