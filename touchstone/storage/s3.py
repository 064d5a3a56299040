"""Blobs as objects in S3 or compatible stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import ObjectStore

from touchstone.digests import digest_of
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
from touchstone.storage.local import delete_stale, map_disk_errors

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")


@contextmanager
def _map_store_errors() -> Iterator[None]:
    """Turn all other errors of a store into OSError, which files raise too."""
    try:
        yield
    except (AlreadyExistsError, NotFoundError):
        raise
    except BaseError as error:
        raise OSError(f"the object store fails ({type(error).__name__})") from error


class ObjectStoreBlobs:
    """Blobs as objects in S3 or compatible stores; files that have yet to become objects are in
    `incoming_folder`.
    """

    def __init__(self, store: ObjectStore, incoming: Path) -> None:
        self._store = store
        self._incoming_path = incoming
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_WRITES, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        with suppress(AlreadyExistsError), _map_store_errors():
            obstore.put(self._store, blob_path(digest), data, mode="create")
        return digest

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        return list(self._threads.map(self.put, files))

    def incoming_folder(self) -> Path:
        """See `Blobs.incoming_folder`."""
        with map_disk_errors():
            self._incoming_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._incoming_path

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`; large ones go in several parts."""
        with _map_store_errors():
            obstore.put(self._store, blob_path(digest), file)

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        return verify(
            digest, self._with_blob(digest, lambda path: bytes(obstore.get(self._store, path).bytes()))
        )

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""
        length = min(length, self.size(digest) - start)
        if length <= 0:
            return b""
        return self._with_blob(
            digest, lambda path: bytes(obstore.get_range(self._store, path, start=start, length=length))
        )

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        return self._with_blob(digest, lambda path: int(obstore.head(self._store, path)["size"]))

    def _with_blob(self, digest: str, action: Callable[[str], T]) -> T:
        """Call `action` with the path that a blob's object has at the moment."""
        for path in candidate_paths(digest, self.list_set_aside):
            with suppress(NotFoundError, FileNotFoundError), _map_store_errors():
                return action(path)
        raise unknown_blob(digest)

    def delete(self, digest: str) -> None:
        """See `Blobs.delete`."""
        self._delete_object(blob_path(digest))

    def set_aside(self, digest: str, at: int) -> None:
        """See `Blobs.set_aside`; for a moment it has both paths, never none."""
        with suppress(NotFoundError, FileNotFoundError):
            obstore.rename(self._store, blob_path(digest), SetAside(digest, at).path)

    def list_set_aside(self) -> Iterator[SetAside]:
        """See `Blobs.list_set_aside`."""
        for found in self._list_objects(ASIDE_FOLDER):
            yield from parse_set_aside(found["path"].rpartition("/")[2])

    def restore(self, entry: SetAside) -> None:
        """See `Blobs.restore`."""
        with suppress(NotFoundError, FileNotFoundError):
            obstore.rename(self._store, entry.path, blob_path(entry.digest))

    def drop(self, entry: SetAside) -> None:
        """See `Blobs.drop`."""
        self._delete_object(entry.path)

    def list_older_than(self, seconds: float) -> Iterator[str]:
        """See `Blobs.list_older_than`."""
        cutoff = datetime.now(UTC) - timedelta(seconds=seconds)
        for found in self._list_objects(None):
            folder, _, name = found["path"].rpartition("/")
            if folder == name[:2] and found["last_modified"] < cutoff:
                yield f"sha256:{name}"

    def delete_partial_files(self) -> None:
        """See `Blobs.delete_partial_files`; an object exists as a whole or not at all."""
        delete_stale(self._incoming_path, "*")

    def claim_for(self, ledger_id: str) -> str:
        """See `Blobs.claim_for`."""
        return self._read_note(OWNER_FILE, ledger_id)

    def schema_version(self, current: int) -> int:
        """See `Blobs.schema_version`."""
        with _map_store_errors():
            return parse_version(self._read_note(SCHEMA_FILE, str(current)))

    def _read_note(self, path: str, text: str) -> str:
        """The text of an object beside the blobs; `text`, where there was no such object."""
        with suppress(AlreadyExistsError):
            obstore.put(self._store, path, text.encode(), mode="create")
        return bytes(obstore.get(self._store, path).bytes()).decode()

    def free_bytes(self) -> None:
        """See `Blobs.free_bytes`."""

    def _list_objects(self, prefix: str | None) -> Iterator[ObjectMeta]:
        for page in obstore.list(self._store, prefix):
            yield from page

    def _delete_object(self, path: str) -> None:
        with suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, path)
