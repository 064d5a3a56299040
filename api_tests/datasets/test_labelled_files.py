"""Labelled files in zips and folders, and their labels met with classes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from api_tests.support.external_data import zip_of
from touchstone.datasets.class_labels import match_labels
from touchstone.datasets.labelled_files import FileLimits, pack_folder, read_zip
from touchstone.errors import InvalidParameter, UnknownLabel

LIMITS = FileLimits(files=5, bytes=2000, field="examples")
FOLDERS = {"cat/a.png": b"1", "hot dog/b.png": b"2", "hot dog/c.png": b"3"}
TABLE = b'\xef\xbb\xbffile_name,label,more\r\na.png,cat,x\r\nsub/b.png,"dog, hot",\r\n'


def read(files: dict[str, bytes]) -> list[tuple[str, str, bytes]]:
    return [(one.name, one.label, one.content) for one in read_zip(io.BytesIO(zip_of(files)), LIMITS)]


def test_folder_of_a_file_is_its_label() -> None:
    right = [
        ("cat/a.png", "cat", b"1"),
        ("hot dog/b.png", "hot dog", b"2"),
        ("hot dog/c.png", "hot dog", b"3"),
    ]
    assert read({**FOLDERS, "__MACOSX/cat/._a.png": b"", "cat/.DS_Store": b""}) == right
    assert [label for _, label, _ in read({f"top/{name}": data for name, data in FOLDERS.items()})] == [
        "cat",
        "hot dog",
        "hot dog",
    ]


@pytest.mark.parametrize("folder", ["", "all/"])
def test_metadata_names_the_labels_of_files_beside_it(folder: str) -> None:
    files = {f"{folder}metadata.csv": TABLE, f"{folder}a.png": b"1", f"{folder}sub/b.png": b"2"}
    assert [one[1:] for one in read(files)] == [("cat", b"1"), ("dog, hot", b"2")]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "0 images"),
        ({"metadata.csv": TABLE}, "0 images"),
        ({f"cat/{i}": b"" for i in range(6)}, "6 images"),
        ({f"cat/{i}": b"" for i in range(9)}, "at most 6 are allowed"),
        ({"a.png": b""}, "'a.png' has no label: it is not in a folder"),
        (
            {"metadata.csv": TABLE, "a.png": b"", "sub/b.png": b"", "c.png": b""},
            "'c.png' has no label: it is not listed",
        ),
        ({"metadata.csv": TABLE, "a.png": b""}, "line 3: expected file_name and label"),
        ({"metadata.csv": b"name,class\na.png,cat\n", "a.png": b""}, "line 2: expected file_name and label"),
        ({"metadata.csv": b"file_name,label\na.png,\n", "a.png": b""}, "line 2"),
        ({"metadata.csv": b"file_name,label\na.png,x\na.png,y\n", "a.png": b""}, "line 3"),
        ({"metadata.csv": b"\xff\xfe", "a.png": b""}, "cannot be read"),
        ({"metadata.csv": b'file_name,label\n"a.png,x', "a.png": b""}, "cannot be read"),
        ({"metadata.csv": TABLE, "b/metadata.csv": TABLE, "a.png": b""}, "2 metadata.csv"),
        ({"../a/b.png": b""}, "leads elsewhere"),
        ({"cat/a.png": bytes(3000)}, "at most 2,000 are allowed"),
        ({"cat/more.zip": b""}, "archive in the archive"),
    ],
)
def test_unusable_zip_is_refused_with_the_reason(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words) as refused:
        read(files)
    assert refused.value.field == "examples"


def test_bytes_that_are_no_zip_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="cannot be used"):
        read_zip(io.BytesIO(b"PK\x03\x04" + bytes(50)), LIMITS)


def test_folder_is_packed_as_a_zip_of_the_same_files(tmp_path: Path) -> None:
    for name, data in FOLDERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    packed = read_zip(io.BytesIO(pack_folder(tmp_path, LIMITS)), LIMITS)
    assert [(one.name, one.label, one.content) for one in packed] == read(FOLDERS)
    (tmp_path / "cat/large").write_bytes(bytes(2001))
    with pytest.raises(InvalidParameter, match="at most 5 images of 2,000 bytes"):
        pack_folder(tmp_path, LIMITS)


def test_labels_are_names_wordnet_ids_or_indices() -> None:
    classes = ["tench", "goldfish", "Great White Shark", "7", "crane", "crane"]
    labels = ["Goldfish", "great_white_shark", "n01440764", "n01443537", "7", "0"]
    assert match_labels(labels, classes, field="examples") == [1, 2, 0, 1, 3, 0]
    thousand = [f"class {i}" for i in range(1000)]
    assert match_labels(["n01484850"], thousand, field="examples") == [2], "by position among as many classes"


@pytest.mark.parametrize(
    ("label", "words", "candidates"),
    [
        ("cats", "no class has this name; the nearest are 'cat' \\(0\\)", None),
        ("crane", "2 classes have this name; give an index", [3, 4]),
        ("5", "no class has this name", None),
        ("n00000000", "no class has this name", None),
    ],
)
def test_unknown_or_ambiguous_label_names_the_candidates(
    label: str, words: str, candidates: list[int] | None
) -> None:
    classes = ["cat", "dog", "cow", "crane", "Crane"]
    with pytest.raises(UnknownLabel, match=words) as refused:
        match_labels(["cat", label], classes, field="examples")
    found = [one["label"] for one in refused.value.extra["candidates"]]
    assert 0 < len(found) <= 3
    assert candidates in (None, found)
