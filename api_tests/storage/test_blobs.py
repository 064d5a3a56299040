"""Blobs: the same promises from a folder and from object storage."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from touchstone.errors import StorageFull, UnknownArtifact
from touchstone.settings import Settings
from touchstone.storage import local
from touchstone.storage.blobs import Blobs, FolderBlobs, ObjectStoreBlobs, digest_of, open_blobs

DATA = bytes(range(256)) * 5
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
NOT_DIGESTS = (
    "",
    "sha256:",
    "sha256:" + "f" * 64,
    "sha256:" + "F" * 64,
    "../../etc/passwd",
    DIGEST + "\n",
    DIGEST[7:],
)


@pytest.fixture(params=["folder", "store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    return ObjectStoreBlobs(MemoryStore(), tmp_path / "incoming")


def test_stored_bytes_are_read_by_their_digest(blobs: Blobs) -> None:
    assert blobs.put(DATA) == DIGEST
    assert blobs.put(DATA) == DIGEST
    assert blobs.get(DIGEST) == DATA
    assert blobs.size(DIGEST) == len(DATA)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (250, 20), (0, len(DATA)), (1270, 99), (5000, 10), (3, 0)]
)
def test_partial_read_returns_the_slice(blobs: Blobs, start: int, length: int) -> None:
    blobs.put(DATA)
    assert blobs.read(DIGEST, start, length) == DATA[start : start + length]


@pytest.mark.parametrize("digest", NOT_DIGESTS)
def test_missing_blob_or_invalid_digest_raises_unknown_artifact(blobs: Blobs, digest: str) -> None:
    for ask in (blobs.get, blobs.size, lambda name: blobs.read(name, 0, 1)):
        with pytest.raises(UnknownArtifact):
            ask(digest)


def test_deleted_blob_is_gone_and_can_be_stored_again(blobs: Blobs) -> None:
    blobs.put(DATA)
    for _ in range(2):
        blobs.delete(DIGEST)
    with pytest.raises(UnknownArtifact):
        blobs.get(DIGEST)
    assert blobs.put(DATA) == DIGEST
    assert blobs.get(DIGEST) == DATA


def test_put_many_stores_files_like_single_puts(blobs: Blobs) -> None:
    files = [DATA, b"", DATA, *(bytes([i]) * i for i in range(1, 40))]
    assert blobs.put_many(files) == [blobs.put(data) for data in files]
    assert [blobs.get(digest) for digest in blobs.put_many(files)] == files
    assert blobs.put_many([]) == []


def test_empty_blob_is_stored(blobs: Blobs) -> None:
    digest = blobs.put(b"")
    assert blobs.get(digest) == b""
    assert blobs.size(digest) == 0


def test_concurrent_puts_of_the_same_bytes_store_one_blob(blobs: Blobs) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: blobs.put(DATA), range(64))) == {DIGEST}
    assert blobs.get(DIGEST) == DATA


def stored_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_put_leaves_only_the_blob_file_at_its_path(tmp_path: Path) -> None:
    FolderBlobs(tmp_path).put(DATA)
    name = DIGEST[7:]
    assert stored_files(tmp_path) == [tmp_path / name[:2] / name]


def test_damaged_blob_is_detected_and_truncated_one_is_replaced(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(DATA)
    (path,) = stored_files(tmp_path)
    path.write_bytes(DATA[::-1])
    with pytest.raises(UnknownArtifact, match="damaged"):
        blobs.get(DIGEST)
    path.write_bytes(DATA[:-1])
    blobs.put(DATA)
    assert blobs.get(DIGEST) == DATA


def test_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    blobs = FolderBlobs(tmp_path)
    monkeypatch.setattr("touchstone.storage.local.sync_file", lambda _: None)
    monkeypatch.setattr("touchstone.storage.local.os.fsync", full)
    with pytest.raises(StorageFull):
        blobs.put(DATA)
    assert stored_files(tmp_path) == []
    with pytest.raises(UnknownArtifact):
        blobs.size(DIGEST)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs of files and folders and renames, from here on."""
    steps: list[str] = []
    sync, replace = local.os.fsync, local.os.replace

    def note_sync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def note_name(*paths: str) -> None:
        steps.append("name")
        replace(*paths)

    monkeypatch.setattr(local.os, "fsync", note_sync)
    monkeypatch.setattr(local.os, "replace", note_name)
    return steps


def test_bytes_are_synced_to_disk_before_they_are_renamed(tmp_path: Path, steps: list[str]) -> None:
    FolderBlobs(tmp_path).put(DATA)
    assert steps[-3:] == ["file", "name", "folder"]


def test_put_many_syncs_files_then_renames_then_syncs_folders(tmp_path: Path, steps: list[str]) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(b"the first makes the folders")
    steps.clear()
    digests = blobs.put_many([b"a", b"b", b"c"])
    folders = len({digest[:9] for digest in digests})
    assert steps.count("file") == steps.count("name") == 3
    assert steps[6:] == ["folder"] * folders


def test_known_bytes_are_not_rewritten_but_their_folder_is_synced(tmp_path: Path, steps: list[str]) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(DATA)
    steps.clear()
    blobs.put(DATA)
    assert steps == ["folder"]


def test_settings_choose_folder_or_object_storage(tmp_path: Path) -> None:
    folder = open_blobs(Settings(home=tmp_path))
    folder.put(DATA)
    assert len(stored_files(tmp_path / "blobs")) == 1
    bucket = open_blobs(Settings(home=tmp_path, blobs_url="memory:///prefix"))
    assert isinstance(bucket, ObjectStoreBlobs)
    assert bucket.get(bucket.put(DATA)) == DATA


@pytest.mark.parametrize("ask", ["get", "size"])
def test_object_storage_failure_is_not_reported_as_missing_blob(
    ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GenericError("503")

    for name in ("put", "get", "head"):
        monkeypatch.setattr(obstore, name, fail)
    blobs = ObjectStoreBlobs(MemoryStore(), tmp_path)
    with pytest.raises(OSError, match="GenericError"):
        blobs.put(b"data")
    with pytest.raises(OSError, match="GenericError"):
        getattr(blobs, ask)(digest_of(b"data"))
