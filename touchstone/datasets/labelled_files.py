"""Labelled image files in a zip or a folder: a folder for each class, or `metadata.csv`.

The layout is that of torchvision's ImageFolder and of Hugging Face's imagefolder. No image is decoded here.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from touchstone.archives import Archive, ArchiveError, open_archive
from touchstone.errors import InvalidParameter

METADATA = "metadata.csv"
COLUMNS = ("file_name", "label")
MAX_METADATA_BYTES = 2**22


@dataclass(frozen=True)
class LabelledFile:
    """The bytes of an image file, its path in the data set, and its label as written."""

    name: str
    label: str
    content: bytes


@dataclass(frozen=True)
class FileLimits:
    """How many files are taken, and how many bytes all of them may have; `field` is what errors name."""

    files: int
    bytes: int
    field: str


def read_zip(file: BinaryIO, limits: FileLimits) -> list[LabelledFile]:
    """The labelled files in a zip, in the order of their names.

    Raises InvalidParameter: a zip that `touchstone.archives` refuses, no images, too many, or one without
    a label.
    """
    try:
        with open_archive(file, max_entries=limits.files + 1, max_bytes=limits.bytes) as archive:
            labels = _read_labels(archive, limits)
            return [LabelledFile(name, label, archive.read(name)) for name, label in labels.items()]
    except ArchiveError as error:
        raise InvalidParameter(
            f"{limits.field}: the zip archive cannot be used: {error}", field=limits.field
        ) from None


def _read_labels(archive: Archive, limits: FileLimits) -> Mapping[str, str]:
    """The label of each image, by its path."""
    tables = [name for name in archive.entries if PurePosixPath(name).name == METADATA]
    images = sorted(archive.entries.keys() - set(tables))
    if not images or len(images) > limits.files or len(tables) > 1:
        raise InvalidParameter(
            f"{limits.field}: {len(images)} images and {len(tables)} {METADATA}; expected 1 to "
            f"{limits.files} images, in a folder for each class or with one {METADATA}",
            field=limits.field,
        )
    listed = _read_metadata(archive, tables[0], limits) if tables else None
    return {name: _find_label(name, listed, limits) for name in images}


def _find_label(name: str, listed: Mapping[str, str] | None, limits: FileLimits) -> str:
    label = PurePosixPath(name).parent.name if listed is None else listed.get(name, "")
    if not label:
        where = f"in a folder named after its class, nor is there a {METADATA}"
        raise InvalidParameter(
            f"{limits.field}: {name[:80]!r} has no label: it is not "
            + (where if listed is None else f"listed in {METADATA}"),
            field=limits.field,
        )
    return label


def _read_metadata(archive: Archive, table: str, limits: FileLimits) -> Mapping[str, str]:
    """The labels in the table, by the paths of the files."""
    if archive.size(table) > MAX_METADATA_BYTES:
        raise ArchiveError(f"{METADATA} has more than {MAX_METADATA_BYTES:,} bytes")
    try:
        rows = list(csv.DictReader(io.StringIO(archive.read(table).decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidParameter(
            f"{limits.field}: {METADATA} cannot be read: {str(error)[:200]}", field=limits.field
        ) from None
    folder, found = PurePosixPath(table).parent, dict[str, str]()
    for number, row in enumerate(rows, 2):
        name, label = (str(row.get(column) or "").strip() for column in COLUMNS)
        path = str(folder / name)
        if not name or not label or path not in archive.entries or path in found:
            raise InvalidParameter(
                f"{limits.field}: {METADATA}, line {number}: expected {' and '.join(COLUMNS)}, once for each "
                f"image beside it, not {name[:60]!r} and {label[:60]!r}",
                field=limits.field,
            )
        found[path] = label
    return found


def pack_folder(folder: Path, limits: FileLimits) -> bytes:
    """The files in a folder and those below it as a zip. Raises InvalidParameter beyond the limits."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    size = sum(path.stat().st_size for path in files)
    if len(files) > limits.files + 1 or size > limits.bytes:
        raise InvalidParameter(
            f"{limits.field}: {folder} has {len(files):,} files of {size:,} bytes; at most {limits.files} "
            f"images of {limits.bytes:,} bytes together are allowed",
            field=limits.field,
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            archive.writestr(path.relative_to(folder).as_posix(), path.read_bytes())
    return buffer.getvalue()
