"""Images, arrays and model files, named by the SHA-256 of their bytes, in a local folder or in object
storage.

An unreferenced blob is not deleted but set aside, and dropped some time later, so that a process that found
it stored and has yet to reference it loses nothing. A blob that is set aside can be read as before.
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
    "Blobs",
    "FolderBlobs",
    "ObjectStoreBlobs",
    "SetAside",
    "digest_of",
    "map_disk_errors",
    "open_blobs",
)


class Blobs(Protocol):
    """Bytes by digest, which never change once put. A missing blob raises `UnknownArtifact`."""

    def put(self, data: bytes) -> str:
        """Store bytes durably before returning their digest; bytes that are stored already are not written
        again.
        """

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """Store several blobs at once, in about the time of one."""

    def incoming_folder(self) -> Path:
        """The folder for files that are passed to `put_file`."""

    def put_file(self, file: Path, digest: str) -> None:
        """Store a file durably without reading it into memory; the original is moved or may be deleted.

        The digest is not checked: the writer of the file has computed it meanwhile.
        """

    def get(self, digest: str) -> bytes:
        """All bytes of a blob, checked against its digest."""

    def read(self, digest: str, start: int, length: int) -> bytes:
        """Some bytes of a blob; fewer where it ends earlier."""

    def size(self, digest: str) -> int:
        """The number of bytes of a blob."""

    def delete(self, digest: str) -> None:
        """Delete a blob that no other process can have put; a missing one is no error."""

    def set_aside(self, digest: str, at: int) -> None:
        """Move a blob to those set aside, with this time; it can be read until it is dropped."""

    def list_set_aside(self) -> Iterator[SetAside]:
        """All blobs that are set aside."""

    def restore(self, entry: SetAside) -> None:
        """Move a blob that was set aside back to its path."""

    def drop(self, entry: SetAside) -> None:
        """Delete a blob that was set aside."""

    def list_older_than(self, seconds: float) -> Iterator[str]:
        """The digests of the blobs that were stored more than `seconds` ago."""

    def delete_partial_files(self) -> None:
        """Delete old half-written files of killed processes."""

    def claim_for(self, ledger_id: str) -> str:
        """The id of the ledger that owns these blobs; `ledger_id`, where none did before."""

    def schema_version(self, current: int) -> int:
        """The version of the layout of these blobs; `current`, where none was written before."""

    def free_bytes(self) -> int | None:
        """How many more bytes can be stored; None where there is no limit."""


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name: `home`/blobs, or a bucket."""
    if settings.blobs_url:
        return ObjectStoreBlobs(from_url(settings.blobs_url), settings.home / "incoming")
    return FolderBlobs(settings.home / "blobs")
