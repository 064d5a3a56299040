"""The small disk of the fault campaign, if this machine permits to mount one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chaos import disk
from touchstone.errors import StorageFull
from touchstone.storage.local import FolderBlobs


def test_full_small_disk_refuses_a_blob_and_keeps_the_earlier_one(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    with disk.mount_small_disk(tmp_path / "blobs") as small:
        kept = blobs.put(b"before")
        if small:
            with disk.fill(tmp_path / "blobs"), pytest.raises(StorageFull):
                blobs.put(os.urandom(5000))
        blobs.put(os.urandom(5000))
        assert blobs.get(kept) == b"before"
    assert (tmp_path / "blobs").is_mount() is False


def test_folder_is_used_when_no_small_disk_can_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with disk.mount_small_disk(tmp_path / "blobs") as small:
        assert small is False
        (tmp_path / "blobs" / "one").write_bytes(b"1")
