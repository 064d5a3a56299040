"""Zip archives from users: names, sizes and contents are hostile until they are checked.

Nothing is unpacked under a name that the archive chose, nothing beyond the limits is unpacked at all, and
the list of entries is bounded before it is parsed.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO

CHUNK = 2**18
MAX_NAME = 255
_DIRECTORY_BYTES = 512
"""More than an entry with a usual name takes in the list of entries."""

_MIN_DIRECTORY_BYTES = 2**17
"""More than is read at the end of an archive to find that list."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_CLUTTER = ("__MACOSX/", ".DS_Store", "Thumbs.db")
"""What systems add without being asked."""


class ArchiveError(Exception):
    """The archive cannot be used; the message says why."""


class _BoundedReads(io.RawIOBase):
    """A file of which no more than `limit` bytes are read at once: the list of entries is read so."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit
        self._size = file.seek(0, io.SEEK_END)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError("an offset in it is negative")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > self._limit:
            raise ArchiveError("it has too many entries")
        return self._file.read(wanted)


@dataclass(frozen=True)
class Archive:
    """The files in a zip archive, by their names, which are relative and do not climb."""

    zip: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]

    def size(self, name: str) -> int:
        """The bytes that an entry states."""
        return self.entries[name].file_size

    def read(self, name: str) -> bytes:
        """The bytes of an entry."""
        buffer = io.BytesIO()
        self.copy(name, buffer)
        return buffer.getvalue()

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Unpack an entry; no more than it states is written, and that it has less is an error."""
        left = self.size(name)
        with _report_damage(name), self.zip.open(self.entries[name]) as source:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                target.write(chunk)
        if left:
            raise ArchiveError(f"{name[:80]!r} does not have the size that it states")


@contextmanager
def open_archive(file: BinaryIO, *, max_entries: int, max_bytes: int) -> Iterator[Archive]:
    """The archive in a seekable file. Raises ArchiveError: damaged, encrypted, nested, or over a limit; or an
    entry is no regular file, stands twice, or has a name that leads elsewhere.
    """
    limit = max(_MIN_DIRECTORY_BYTES, max_entries * _DIRECTORY_BYTES)
    with _report_damage("it"):
        opened = zipfile.ZipFile(_BoundedReads(file, limit))
    with opened:
        yield Archive(opened, _check_entries(opened.infolist(), max_entries, max_bytes))


def _check_entries(
    infos: list[zipfile.ZipInfo], max_entries: int, max_bytes: int
) -> Mapping[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _check_name(info.orig_filename)
        if info.is_dir() or name.startswith(_CLUTTER[0]) or name.endswith(_CLUTTER[1:]):
            continue
        _check_entry(info, name)
        if name in entries:
            raise ArchiveError(f"two files in it are named {name[:80]!r}")
        entries[name] = info
    if len(entries) > max_entries:
        raise ArchiveError(f"it has {len(entries):,} files; at most {max_entries:,} are allowed")
    if (total := sum(info.file_size for info in entries.values())) > max_bytes:
        raise ArchiveError(f"it unpacks to {total:,} bytes; at most {max_bytes:,} are allowed")
    return entries


def _check_name(name: str) -> str:
    path = PurePosixPath(name)
    climbs = path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":"
    if climbs or not path.parts or not name.isprintable() or len(name) > MAX_NAME:
        raise ArchiveError(f"the name {name[:80]!r} in it leads elsewhere or is no name")
    return str(path)


def _check_entry(info: zipfile.ZipInfo, name: str) -> None:
    if info.flag_bits & 0x1:
        raise ArchiveError(f"{name[:80]!r} is encrypted")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ArchiveError(f"{name[:80]!r} is a link or a device, no file")
    if info.compress_type not in _METHODS:
        raise ArchiveError(f"{name[:80]!r} is compressed in a way that is not supported; use deflate")
    if PurePosixPath(name).suffix.lower() in _ARCHIVE_SUFFIXES:
        raise ArchiveError(f"{name[:80]!r} is an archive in the archive; unpack it first")


@contextmanager
def _report_damage(name: str) -> Iterator[None]:
    """Turn what the parser raises on malformed archives into ArchiveError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ValueError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise ArchiveError(f"{name[:80]} is damaged: {str(error)[:200]}") from None
