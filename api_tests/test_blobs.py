"""Blobs: the same promises from a folder and from object storage."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from touchstone.errors import UnknownArtifact
from touchstone.jobs import blobs as module
from touchstone.jobs.blobs import Blobs, FolderBlobs, StoreBlobs, open_blobs
from touchstone.settings import Settings

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
    return FolderBlobs(tmp_path / "blobs") if request.param == "folder" else StoreBlobs(MemoryStore())


def test_bytes_come_back_under_their_digest(blobs: Blobs) -> None:
    assert blobs.put(DATA) == DIGEST
    assert blobs.put(DATA) == DIGEST
    assert blobs.get(DIGEST) == DATA
    assert blobs.size(DIGEST) == len(DATA)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (250, 20), (0, len(DATA)), (1270, 99), (5000, 10), (3, 0)]
)
def test_a_part_is_the_slice(blobs: Blobs, start: int, length: int) -> None:
    blobs.put(DATA)
    assert blobs.read(DIGEST, start, length) == DATA[start : start + length]


@pytest.mark.parametrize("digest", NOT_DIGESTS)
def test_what_is_not_there_is_unknown(blobs: Blobs, digest: str) -> None:
    for ask in (blobs.get, blobs.size, lambda name: blobs.read(name, 0, 1)):
        with pytest.raises(UnknownArtifact):
            ask(digest)


def test_nothing_is_a_blob_too(blobs: Blobs) -> None:
    digest = blobs.put(b"")
    assert blobs.get(digest) == b""
    assert blobs.size(digest) == 0


def test_many_may_put_the_same_bytes_at_once(blobs: Blobs) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: blobs.put(DATA), range(64))) == {DIGEST}
    assert blobs.get(DIGEST) == DATA


def stored(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_file_has_its_place_and_nothing_else_stays(tmp_path: Path) -> None:
    FolderBlobs(tmp_path).put(DATA)
    name = DIGEST[7:]
    assert stored(tmp_path) == [tmp_path / name[:2] / name[2:4] / name]


def test_a_damaged_file_is_noticed_and_a_short_one_is_replaced(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(DATA)
    (path,) = stored(tmp_path)
    path.write_bytes(DATA[::-1])
    with pytest.raises(UnknownArtifact, match="damaged"):
        blobs.get(DIGEST)
    path.write_bytes(DATA[:-1])
    blobs.put(DATA)
    assert blobs.get(DIGEST) == DATA


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    blobs = FolderBlobs(tmp_path)
    monkeypatch.setattr("touchstone.jobs.blobs._sync", lambda _: None)
    monkeypatch.setattr("touchstone.jobs.blobs.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        blobs.put(DATA)
    assert stored(tmp_path) == []
    with pytest.raises(UnknownArtifact):
        blobs.size(DIGEST)


def test_bytes_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = module.os.fsync, module.os.replace
    monkeypatch.setattr(module.os, "fsync", lambda handle: (steps.append("sync"), sync(handle)))
    monkeypatch.setattr(module.os, "replace", lambda *paths: (steps.append("name"), replace(*paths)))
    FolderBlobs(tmp_path).put(DATA)
    assert steps[-3:] == ["sync", "name", "sync"]


def test_the_settings_choose(tmp_path: Path) -> None:
    folder = open_blobs(Settings(home=tmp_path))
    folder.put(DATA)
    assert len(stored(tmp_path / "blobs")) == 1
    bucket = open_blobs(Settings(home=tmp_path, blobs_url="memory:///prefix"))
    assert isinstance(bucket, StoreBlobs)
    assert bucket.get(bucket.put(DATA)) == DATA
