"""The file or files that a user's model comes in, made one: an ONNX file, its weights beside it, or a zip."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from touchstone.archives import Archive, ArchiveError, open_archive
from touchstone.errors import InvalidModel, InvalidParameter
from touchstone.models.external_data import MAX_BYTES, Joined, Piece, find_locations, join
from touchstone.models.file_format import Format, detect_format, list_entries
from touchstone.models.protobuf import Data, is_onnx
from touchstone.storage.local import map_disk_errors

ONNX_SUFFIX = ".onnx"
MAX_ENTRIES = 1_000
_ZIP = b"PK"


@dataclass(frozen=True)
class ModelFile:
    """The one file of a model, as the pieces of those that it came in; `alone` if it came as it is."""

    format: Format
    joined: Joined
    alone: bool


@contextmanager
def open_model(
    file: Path, others: Mapping[str, Path], *, limit: int, scratch: Path | None = None
) -> Iterator[ModelFile]:
    """The file of a model; `others` are those sent with it, by name. A zip is unpacked in `scratch`.

    Raises InvalidModel, ModelTooLarge beyond `limit` bytes, and InvalidParameter.
    """
    with ExitStack() as stack:
        data = stack.enter_context(map_file(file))
        if alone := not is_package(data):
            files = {name: stack.enter_context(map_file(path)) for name, path in others.items()}
        else:
            _refuse_others(others, "a zip holds all files of a model")
            data, files = stack.enter_context(_unpack(file, limit, scratch))
        yield _join(data, files, limit=limit, alone=alone)


def _join(data: Data, files: Mapping[str, Data], *, limit: int, alone: bool) -> ModelFile:
    found = detect_format(data, limit=limit)
    if found != "onnx":
        _refuse_others(files, "a safetensors file holds all weights")
        return ModelFile(found, Joined((Piece(data, 0, len(data)),)), alone)
    joined = join(data, files, limit=limit)
    return ModelFile(found, joined, alone and not files)


def _refuse_others(others: Mapping[str, object], why: str) -> None:
    if others:
        raise InvalidParameter(f"data: {why}; leave this part out", field="data")


def find_beside(file: Path) -> dict[str, Path]:
    """The files in the same folder that an ONNX file has its weights in, by name; missing ones are left out.

    Raises InvalidModel.
    """
    with map_file(file) as data:
        names = find_locations(data) if is_onnx(data) else ()
    return {name: file.parent / name for name in names if (file.parent / name).is_file()}


def joined_bytes(file: Path, others: Mapping[str, Path], *, limit: int) -> int:
    """The most bytes of the one file that these become, 0 if `file` is that one. Raises InvalidModel."""
    with map_file(file) as data:
        package = is_package(data)
    if not package:
        return sum(path.stat().st_size for path in (file, *others.values())) if others else 0
    with _open_package(file, limit) as archive:
        return sum(map(archive.size, archive.entries))


def is_package(data: Data) -> bool:
    """Whether it is a zip with an ONNX file in it."""
    return data[:2] == _ZIP and any(_is_onnx_name(name) for name in list_entries(data))


def _is_onnx_name(name: str) -> bool:
    return name.lower().endswith(ONNX_SUFFIX)


@contextmanager
def map_file(path: Path) -> Iterator[Data]:
    """The bytes of a file, mapped into memory and not read as a whole."""
    with path.open("rb") as file, _map_open(file) as data:
        yield data


@contextmanager
def _map_open(file: IO[bytes]) -> Iterator[Data]:
    if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


@contextmanager
def _open_package(file: Path, limit: int) -> Iterator[Archive]:
    try:
        with (
            file.open("rb") as opened,
            open_archive(opened, max_entries=MAX_ENTRIES, max_bytes=min(limit, MAX_BYTES)) as archive,
        ):
            yield archive
    except ArchiveError as error:
        raise InvalidModel(f"file: the zip archive cannot be used: {error}", field="file") from None


@contextmanager
def _unpack(file: Path, limit: int, scratch: Path | None) -> Iterator[tuple[Data, dict[str, Data]]]:
    """The ONNX file in a zip, and the files beside it that it names."""
    with ExitStack() as stack:
        archive = stack.enter_context(_open_package(file, limit))
        main = _choose_onnx(archive)
        data = stack.enter_context(_unpack_entry(archive, main, scratch))
        folder = PurePosixPath(main).parent
        named = {name: str(folder / name) for name in (find_locations(data) if is_onnx(data) else ())}
        found = {name: entry for name, entry in named.items() if entry in archive.entries}
        yield (
            data,
            {
                name: stack.enter_context(_unpack_entry(archive, entry, scratch))
                for name, entry in found.items()
            },
        )


def _choose_onnx(archive: Archive) -> str:
    names = [name for name in archive.entries if _is_onnx_name(name)]
    if len(names) != 1:
        shown = ", ".join(name[:40] for name in names[:5])
        raise InvalidModel(
            f"file: the zip archive must hold one .onnx file, not {len(names)} ({shown})", field="file"
        )
    return names[0]


@contextmanager
def _unpack_entry(archive: Archive, name: str, scratch: Path | None) -> Iterator[Data]:
    """The bytes of an entry, in a file without a name."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        with map_disk_errors():
            archive.copy(name, file)
            file.flush()
        with _map_open(file) as data:
            yield data
