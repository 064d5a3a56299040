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
from touchstone.storage.layout import (
    ASIDE_FOLDER,
    MAX_CONCURRENT_WRITES,
    OWNER_FILE,
    SCHEMA_FILE,
    SetAside,
    blob_path,
    candidate_paths,
    parse_set_aside,
    parse_version,
    unknown_blob,
    verify,
)

_PARTIAL_PREFIX = ".new-"
_STALE_SECONDS = 86_400
_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


@contextmanager
def map_disk_errors() -> Iterator[None]:
    """Turn errors of a full disk into `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRNOS:
            raise
        raise StorageFull("the disk has no space left to store files; try again later") from error


class FolderBlobs:
    """Blobs as files below `root`.

    A file is complete and synced to disk before it gets its name; its folder is synced before `put` returns.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ready = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_WRITES, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        return self.put_many([data])[0]

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        digests = [digest_of(data) for data in files]
        paths = [self._path(digest) for digest in digests]
        with map_disk_errors():
            self._make_folders()
            new = {path: data for path, data in zip(paths, files, strict=True) if not _is_stored(path, data)}
            self._run_concurrently(_write, new.items())
            # A file that was there before may be another process's, which has yet to sync its folder.
            self._run_concurrently(sync_file, {(path.parent,) for path in paths})
        return digests

    def incoming_folder(self) -> Path:
        """See `Blobs.incoming_folder`."""
        with map_disk_errors():
            self._make_folders()
            folder = self._root / "incoming"
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`."""
        path = self._path(digest)
        with map_disk_errors():
            sync_file(file)
        os.replace(file, path)
        sync_file(path.parent)

    def _run_concurrently(self, action: Callable[..., None], calls: Collection[tuple[Any, ...]]) -> None:
        """Call `action` for each at the same time, because the disk takes the time."""
        if len(calls) == 1:
            action(*next(iter(calls)))
        else:
            list(self._threads.map(lambda call: action(*call), calls))

    def _make_folders(self) -> None:
        """Make all folders before the first blob, so that none has to be synced later."""
        with self._lock:
            if not self._ready:
                _make_folder(self._root)
                for first in range(256):
                    (self._root / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
                sync_file(self._root)
                self._ready = True

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        return verify(digest, self._with_blob(digest, Path.read_bytes))

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""

        def part(path: Path) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        return self._with_blob(digest, part)

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        return self._with_blob(digest, lambda path: path.stat().st_size)

    def _with_blob(self, digest: str, action: Callable[[Path], T]) -> T:
        """Call `action` with the path that a blob's file has at the moment."""
        for path in candidate_paths(digest, self.list_set_aside):
            with suppress(FileNotFoundError):
                return action(self._root / path)
        raise unknown_blob(digest)

    def delete(self, digest: str) -> None:
        """See `Blobs.delete`."""
        self._path(digest).unlink(missing_ok=True)

    def set_aside(self, digest: str, at: int) -> None:
        """See `Blobs.set_aside`."""
        with suppress(FileNotFoundError):
            (self._root / ASIDE_FOLDER).mkdir(mode=0o700, exist_ok=True)
            self._path(digest).rename(self._root / SetAside(digest, at).path)

    def list_set_aside(self) -> Iterator[SetAside]:
        """See `Blobs.list_set_aside`."""
        for file in _list_files(self._root / ASIDE_FOLDER):
            yield from parse_set_aside(file.name)

    def restore(self, entry: SetAside) -> None:
        """See `Blobs.restore`."""
        path = self._path(entry.digest)
        with suppress(FileNotFoundError):
            (self._root / entry.path).replace(path)
            sync_file(path.parent)

    def drop(self, entry: SetAside) -> None:
        """See `Blobs.drop`."""
        (self._root / entry.path).unlink(missing_ok=True)

    def list_older_than(self, seconds: float) -> Iterator[str]:
        """See `Blobs.list_older_than`."""
        for folder in self._root.glob("??"):
            for file in _list_files(folder):
                if not file.name.startswith(_PARTIAL_PREFIX) and _is_older(file, seconds):
                    yield f"sha256:{file.name}"

    def delete_partial_files(self) -> None:
        """See `Blobs.delete_partial_files`."""
        delete_stale(self._root / "incoming", "*")
        delete_stale(self._root, f"??/{_PARTIAL_PREFIX}*")

    def claim_for(self, ledger_id: str) -> str:
        """See `Blobs.claim_for`."""
        return self._read_note(OWNER_FILE, ledger_id)

    def schema_version(self, current: int) -> int:
        """See `Blobs.schema_version`."""
        return parse_version(self._read_note(SCHEMA_FILE, str(current)))

    def _read_note(self, name: str, text: str) -> str:
        """The text of a file beside the blobs; `text`, where there was no such file."""
        path = self._root / name
        if not path.exists():
            with map_disk_errors():
                self._make_folders()
                _write(path, text.encode())
        return path.read_text()

    def free_bytes(self) -> int:
        """See `Blobs.free_bytes`."""
        existing = next(folder for folder in (self._root, *self._root.absolute().parents) if folder.exists())
        disk = os.statvfs(existing)
        return disk.f_bavail * disk.f_frsize

    def _path(self, digest: str) -> Path:
        return self._root / blob_path(digest)


def delete_stale(folder: Path, pattern: str) -> None:
    """Delete files of this pattern that have not changed for a day."""
    for file in folder.glob(pattern):
        if _is_older(file, _STALE_SECONDS):
            file.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each synced before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_file(folder.parent)


def _list_files(folder: Path) -> Iterator[Path]:
    """The entries of a folder, none where it does not exist."""
    with suppress(FileNotFoundError):
        yield from folder.iterdir()


def _is_older(file: Path, seconds: float) -> bool:
    try:
        return time.time() - file.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def _is_stored(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data)
    except FileNotFoundError:
        return False


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Have the disk keep a file or folder as it is now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
