"""Blobs as objects in S3 or its like."""

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
from touchstone.storage.layout import ASIDE, AT_ONCE, OWNER, Aside, aside_of, checked, missing, place, places
from touchstone.storage.local import delete_forgotten, storing

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")


@contextmanager
def _answering() -> Iterator[None]:
    """Turn whatever else a store fails with into OSError, as files do."""
    try:
        yield
    except (AlreadyExistsError, NotFoundError):
        raise
    except BaseError as error:
        raise OSError(f"the store of the files fails ({type(error).__name__})") from error


class StoreBlobs:
    """Blobs as objects in S3 or its like; a file that has yet to become one lies in `incoming`."""

    def __init__(self, store: ObjectStore, incoming: Path) -> None:
        self._store = store
        self._incoming = incoming
        self._threads = ThreadPoolExecutor(AT_ONCE, "blobs")

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        with suppress(AlreadyExistsError), _answering():
            obstore.put(self._store, place(digest), data, mode="create")
        return digest

    def put_many(self, files: Sequence[bytes]) -> list[str]:
        """See `Blobs.put_many`."""
        return list(self._threads.map(self.put, files))

    def incoming(self) -> Path:
        """See `Blobs.incoming`."""
        with storing():
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._incoming

    def put_file(self, file: Path, digest: str) -> None:
        """See `Blobs.put_file`; large ones go in several parts."""
        with _answering():
            obstore.put(self._store, place(digest), file)

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        return checked(
            digest, self._reach(digest, lambda where: bytes(obstore.get(self._store, where).bytes()))
        )

    def read(self, digest: str, start: int, length: int) -> bytes:
        """See `Blobs.read`."""
        length = min(length, self.size(digest) - start)
        if length <= 0:
            return b""
        return self._reach(
            digest, lambda where: bytes(obstore.get_range(self._store, where, start=start, length=length))
        )

    def size(self, digest: str) -> int:
        """See `Blobs.size`."""
        return self._reach(digest, lambda where: int(obstore.head(self._store, where)["size"]))

    def _reach(self, digest: str, action: Callable[[str], T]) -> T:
        """Do something with a blob's object, wherever it lies at the moment."""
        for where in places(digest, self.aside):
            with suppress(NotFoundError, FileNotFoundError), _answering():
                return action(where)
        raise missing(digest)

    def forget(self, digest: str) -> None:
        """See `Blobs.forget`."""
        self._delete(place(digest))

    def set_aside(self, digest: str, at: int) -> None:
        """See `Blobs.set_aside`; a moment long it lies in both places, never in none."""
        with suppress(NotFoundError, FileNotFoundError):
            obstore.rename(self._store, place(digest), Aside(digest, at).place)

    def aside(self) -> Iterator[Aside]:
        """See `Blobs.aside`."""
        for found in self._listed(ASIDE):
            yield from aside_of(found["path"].rpartition("/")[2])

    def restore(self, aside: Aside) -> None:
        """See `Blobs.restore`."""
        with suppress(NotFoundError, FileNotFoundError):
            obstore.rename(self._store, aside.place, place(aside.digest))

    def drop(self, aside: Aside) -> None:
        """See `Blobs.drop`."""
        self._delete(aside.place)

    def older_than(self, seconds: float) -> Iterator[str]:
        """See `Blobs.older_than`."""
        young = datetime.now(UTC) - timedelta(seconds=seconds)
        for found in self._listed(None):
            folder, _, name = found["path"].rpartition("/")
            if folder == name[:2] and found["last_modified"] < young:
                yield f"sha256:{name}"

    def tidy(self) -> None:
        """See `Blobs.tidy`; an object is there as a whole or not at all."""
        delete_forgotten(self._incoming, "*")

    def owner(self, name: str) -> str:
        """See `Blobs.owner`."""
        with suppress(AlreadyExistsError):
            obstore.put(self._store, OWNER, name.encode(), mode="create")
        return bytes(obstore.get(self._store, OWNER).bytes()).decode()

    def free(self) -> None:
        """See `Blobs.free`."""

    def _listed(self, prefix: str | None) -> Iterator[ObjectMeta]:
        for page in obstore.list(self._store, prefix):
            yield from page

    def _delete(self, where: str) -> None:
        with suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, where)
