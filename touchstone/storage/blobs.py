"""Images and arrays, named by the SHA-256 of their bytes, in a local folder or in object storage.

A blob that nobody holds is not deleted but set aside, and dropped some time later: whoever found it stored
already, and has yet to hold it, loses nothing. What is set aside can be read as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from obstore.store import from_url

from touchstone.digests import digest_of
from touchstone.settings import Settings
from touchstone.storage.layout import SetAside
from touchstone.storage.local import FolderBlobs, map_disk_errors
from touchstone.storage.s3 import ObjectStoreBlobs

__all__ = (
    "SetAside",
    "Blobs",
    "FolderBlobs",
    "ObjectStoreBlobs",
    "digest_of",
    "open_blobs",
    "map_disk_errors",
)


class Blobs(Protocol):
    """Bytes by digest, which never change once put. What is not there raises `UnknownArtifact`."""

    def put(self, data: bytes) -> str:
        """Store bytes for good before returning their digest; bytes already there are not written again."""

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """Store several at once, in hardly more time than one."""

    def incoming_folder(self) -> Path:
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

    def delete(self, digest: str) -> None:
        """Delete a blob that nobody else can have put; one that is not there is no fault."""

    def set_aside(self, digest: str, at: int) -> None:
        """Take a blob out of its place at this time; until it is dropped it can be read all the same."""

    def list_set_aside(self) -> Iterator[SetAside]:
        """All that is set aside."""

    def restore(self, entry: SetAside) -> None:
        """Put a blob back that was set aside."""

    def drop(self, entry: SetAside) -> None:
        """Delete what was set aside for good."""

    def list_older_than(self, seconds: float) -> Iterator[str]:
        """The digests of the blobs that were stored longer ago."""

    def delete_partial_files(self) -> None:
        """Delete what processes left half-written that were killed long ago."""

    def claim_for(self, ledger_id: str) -> str:
        """The name of the ledger that these blobs belong to; `ledger_id`, where they belonged to none so far."""

    def free_bytes(self) -> int | None:
        """How many more bytes can be stored; None where there is no such bound."""


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name: `home`/blobs, or a bucket."""
    if settings.blobs_url:
        return ObjectStoreBlobs(from_url(settings.blobs_url), settings.home / "incoming")
    return FolderBlobs(settings.home / "blobs")
