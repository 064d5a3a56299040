"""Names and paths of blobs: the same in a folder and in a bucket."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from touchstone.digests import digest_of
from touchstone.errors import UnknownArtifact

ASIDE_FOLDER = "aside"
OWNER_FILE = "owner"
SCHEMA_FILE = "schema"
T = TypeVar("T")

MAX_CONCURRENT_WRITES = 16
"""Blobs that one process stores at once."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ASIDE_NAME = re.compile(r"([0-9]{1,19})-([0-9a-f]{64})")


class SetAside(NamedTuple):
    """A blob that was set aside, and when by the ledger's clock, in milliseconds."""

    digest: str
    at: int

    @property
    def path(self) -> str:
        """Its path: a new one each time it is set aside."""
        return f"{ASIDE_FOLDER}/{self.at}-{self.digest.removeprefix('sha256:')}"


def blob_path(digest: str) -> str:
    """A blob's path: in one of 256 folders, so that none grows too large."""
    if not _DIGEST.fullmatch(digest):
        raise unknown_blob(digest)
    name = digest.removeprefix("sha256:")
    return f"{name[:2]}/{name}"


def candidate_paths(digest: str, list_set_aside: Callable[[], Iterable[SetAside]]) -> Iterator[str]:
    """The paths that a blob may have; its own comes twice, because it may be restored during the search."""
    yield blob_path(digest)
    yield from (entry.path for entry in list_set_aside() if entry.digest == digest)
    yield blob_path(digest)


def parse_set_aside(name: str) -> Iterator[SetAside]:
    """The blob and time in the name of a file among those set aside."""
    if match := _ASIDE_NAME.fullmatch(name):
        yield SetAside(f"sha256:{match[2]}", int(match[1]))


def parse_version(text: str) -> int:
    """The version in the file `SCHEMA_FILE`; one that is no number is newer than any."""
    return int(text) if text.isascii() and text.isdigit() else sys.maxsize


def unknown_blob(digest: str) -> UnknownArtifact:
    """The error for a missing blob."""
    return UnknownArtifact(f"there are no bytes with the digest {digest[:80]!r}")


def verify(digest: str, data: bytes) -> bytes:
    """The bytes, if they have this digest; `UnknownArtifact` where they were altered."""
    if digest_of(data) != digest:
        raise UnknownArtifact(f"the bytes of {digest} are damaged")
    return data


def split_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of this length; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
