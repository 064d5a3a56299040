"""The files that a model comes in: one, two, or a zip of both; and the zips that are refused."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import touchstone
from api_tests.support.external_data import DATA, change_entries, write_external, zip_of
from api_tests.support.linear_models import gray_images
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_net, linear_onnx
from touchstone.archives import ArchiveError, open_archive
from touchstone.errors import Failure, InvalidModel, InvalidParameter
from touchstone.registration.model_files import find_beside, joined_bytes, open_model

LIMIT = 2**20


@pytest.fixture
def two(tmp_path: Path) -> dict[str, bytes]:
    """The two files of a model, also on the disk as m.onnx and m.onnx.data."""
    path = write_external(tmp_path)
    return {"m.onnx": path.read_bytes(), DATA: (tmp_path / DATA).read_bytes()}


def read_model(file: Path, others: dict[str, Path] | None = None) -> bytes:
    with open_model(file, others or {}, limit=LIMIT) as model:
        return b"".join(model.joined.chunks())


def zipped(folder: Path, content: bytes) -> Path:
    (folder / "m.zip").write_bytes(content)
    return folder / "m.zip"


def test_two_files_and_a_zip_of_them_become_the_same_file(two: dict[str, bytes], tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    right = read_model(file, {DATA: tmp_path / DATA})
    assert find_beside(file) == {DATA: tmp_path / DATA}
    assert joined_bytes(file, find_beside(file), limit=LIMIT) >= len(right)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for folder in ("", "net/"):
            names = {folder + name: content for name, content in two.items()}
            clutter = {"__MACOSX/._m.onnx": b"x", "labels.txt": b"cat\ndog\n"}
            archive = zipped(tmp_path, zip_of({**names, **clutter}, method))
            assert read_model(archive) == right
            assert joined_bytes(archive, {}, limit=LIMIT) >= len(right)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", DATA, "m.zip"]


def test_one_file_is_used_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(linear_onnx())
    with open_model(file, {}, limit=LIMIT) as model:
        assert (model.alone, model.format) == (True, "onnx")
    assert joined_bytes(file, {}, limit=LIMIT) == 0
    assert read_model(zipped(tmp_path, zip_of({"a.onnx": linear_onnx()}))) == linear_onnx()


@pytest.mark.parametrize("name", ["m.onnx", "m.zip"])
def test_model_of_two_files_is_loaded_by_the_library(
    two: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    zipped(tmp_path, zip_of(two))
    model = touchstone.load(tmp_path / name, manifest=REGISTRATION_FIELDS)
    x = gray_images(2)
    torch.testing.assert_close(model.oracle.module(model.oracle.preprocessing.apply(x)), linear_net()(x))


def test_files_outside_the_folder_are_never_opened(two: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    for location in (f"../{DATA}", str(tmp_path / DATA)):
        (folder / "m.onnx").write_bytes(change_entries(two["m.onnx"], location=location))
        with pytest.raises(InvalidModel, match="it must be a file beside"):
            find_beside(folder / "m.onnx")


def test_second_file_beside_one_that_needs_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(linear_onnx())
    with pytest.raises(InvalidModel, match="no weight"):
        read_model(tmp_path / "a", {"a": tmp_path / "a"})
    archive = zipped(tmp_path, zip_of({"a.onnx": linear_onnx()}))
    with pytest.raises(InvalidParameter, match="leave this part out"):
        read_model(archive, {"a": tmp_path / "a"})


def twice(two: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m.onnx", two["m.onnx"])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("m.onnx", two["m.onnx"])
    return buffer.getvalue()


def link(two: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo(DATA)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m.onnx", two["m.onnx"])
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def change_directory(archive: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with another number in the central directory's first entry."""
    changed = bytearray(archive)
    struct.pack_into(form, changed, archive.index(b"PK\x01\x02") + offset, value)
    return bytes(changed)


HOSTILE = {
    "climbs": (lambda two: zip_of({**two, f"../{DATA}": b""}), "leads elsewhere"),
    "absolute": (lambda two: zip_of({**two, "/etc/passwd": b""}), "leads elsewhere"),
    "backslash": (lambda two: zip_of({**two, "..\\a": b""}), "leads elsewhere"),
    "twice": (twice, "two files in it are named 'm.onnx'"),
    "link": (link, "a link or a device"),
    "nested": (lambda two: zip_of({**two, "more.ZIP": b""}), "archive in the archive"),
    "bomb": (lambda two: zip_of({**two, "zeros": bytes(2 * LIMIT)}), "at most 1,048,576 are allowed"),
    "many": (lambda two: zip_of({**two, **{str(i): b"" for i in range(1001)}}), "at most 1,000"),
    "encrypted": (lambda two: change_directory(zip_of(two), 8, "<H", 1), "encrypted"),
    "method": (lambda two: zip_of(two, zipfile.ZIP_LZMA), "use deflate"),
    "states less": (lambda two: change_directory(zip_of(two), 24, "<I", 10), "damaged"),
    "states more": (
        lambda two: change_directory(zip_of(two, zipfile.ZIP_STORED), 24, "<I", 900_000),
        "damaged|size",
    ),
    "cut short": (lambda two: zip_of(two)[:-10], "damaged"),
    "two networks": (lambda two: zip_of({**two, "b.onnx": b""}), "one .onnx file, not 2"),
    "no network": (lambda two: zip_of({DATA: two[DATA]}), "zip archive without an .onnx file"),
    "pickle": (lambda _: zip_of({"net/data.pkl": b""}), "whatever code is in it"),
    "no data": (lambda two: zip_of({"m.onnx": two["m.onnx"]}), "external_data=False"),
    "data elsewhere": (
        lambda two: zip_of({"a/m.onnx": two["m.onnx"], DATA: two[DATA]}),
        "external_data=False",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_or_useless_zip_is_refused(two: dict[str, bytes], tmp_path: Path, name: str) -> None:
    make, words = HOSTILE[name]
    with pytest.raises(Failure, match=words) as refused:
        read_model(zipped(tmp_path, make(two)))
    assert refused.value.code in ("invalid_model", "model_too_large")


def test_list_of_entries_is_bounded_before_it_is_parsed(two: dict[str, bytes]) -> None:
    archive = zip_of(two)
    start, end = archive.index(b"PK\x01\x02"), archive.index(b"PK\x05\x06")
    directory, tail = archive[start:end] * 20_000, bytearray(archive[end:])
    struct.pack_into("<II", tail, 12, len(directory), start)
    file = io.BytesIO(archive[:start] + directory + bytes(tail))
    with (
        pytest.raises(ArchiveError, match="too many entries"),
        open_archive(file, max_entries=1000, max_bytes=LIMIT),
    ):
        pass


def test_damaged_zip_raises_nothing_but_failures(two: dict[str, bytes], tmp_path: Path) -> None:
    archive = zip_of(two, zipfile.ZIP_STORED)
    for at in range(0, len(archive), max(1, len(archive) // 400)):
        changed = bytearray(archive)
        changed[at] ^= 0xFF
        try:
            read_model(zipped(tmp_path, bytes(changed)))
        except Failure:
            continue
