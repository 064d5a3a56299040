"""Labelled examples of a user's model: read, decoded and met with its classes before the trial uses them."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from touchstone.datasets.class_labels import match_labels
from touchstone.datasets.labelled_files import FileLimits, LabelledFile, read_zip
from touchstone.digests import digest_of
from touchstone.errors import ImageTooLarge, InvalidImage
from touchstone.images import Pixels, decode
from touchstone.ledger.records import ExamplesRef, ImageRef

FIELD = "examples"
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 100_000_000
"""Of all examples together: decoding so many takes some seconds."""

MAX_SECONDS = 30
PACKED_LIMITS = FileLimits(files=100, bytes=MAX_BYTES, field=FIELD)
LIMITS = replace(PACKED_LIMITS, bytes=2 * MAX_BYTES)

Decode = Callable[[bytes], tuple[bytes, ImageRef]]
"""Gives the canonical PNG of an upload, from a process that the upload may crash."""


@dataclass(frozen=True)
class Examples:
    """Examples that a job can be given: their reference, and the blob that it names."""

    ref: ExamplesRef
    content: bytes


def prepare_examples(archive: BinaryIO, classes: Sequence[str], decode_upload: Decode) -> Examples:
    """The examples in a zip, for a model of these classes.

    Raises InvalidParameter for the zip and its layout, UnknownLabel, and InvalidImage and ImageTooLarge,
    which name the file.
    """
    files = read_zip(archive, LIMITS)
    labels = match_labels([file.label for file in files], classes, field=FIELD)
    content = _pack(_decode_all(files, decode_upload))
    return Examples(ExamplesRef(digest=digest_of(content), size=len(content), labels=tuple(labels)), content)


def _decode_all(files: Sequence[LabelledFile], decode_upload: Decode) -> list[bytes]:
    images, pixels, began = [], 0, time.monotonic()
    for file in files:
        if time.monotonic() - began > MAX_SECONDS:
            raise InvalidImage(f"{FIELD}: decoding them takes more than {MAX_SECONDS} s", field=FIELD)
        png, image = _decode_one(file, decode_upload)
        images.append(png)
        pixels += image.width * image.height
        if pixels > MAX_PIXELS:
            raise ImageTooLarge(
                f"{FIELD}: more than {MAX_PIXELS:,} pixels together; scale them down", field=FIELD
            )
    return images


def _decode_one(file: LabelledFile, decode_upload: Decode) -> tuple[bytes, ImageRef]:
    try:
        return decode_upload(file.content)
    except (InvalidImage, ImageTooLarge) as failure:
        detail = failure.detail.removeprefix("image: ")
        raise type(failure)(f"{FIELD}: {file.name[:80]!r}: {detail}", field=FIELD) from None


def _pack(images: Sequence[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, png in enumerate(images):
            archive.writestr(zipfile.ZipInfo(f"{index:03}.png"), png)  # without a time: equal bytes
    return buffer.getvalue()


def unpack_examples(content: bytes) -> list[Pixels]:
    """The pixels of the examples in a blob."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [decode(archive.read(name)).pixels for name in sorted(archive.namelist())]
