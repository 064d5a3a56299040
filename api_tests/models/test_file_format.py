"""The format of a model file, detected without loading it: other formats are named, and nothing runs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import pickletools
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from touchstone.errors import InvalidModel, ModelTooLarge
from touchstone.models.file_format import detect_format
from touchstone.models.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS

LIMIT = 2**25


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, leaves: Path) -> None:
        self.leaves = leaves

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.leaves,)


def onnx_file() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 192])
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y])
    return bytes(helper.make_model(graph).SerializeToString())


def zip_archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, data in files.items():
            target.writestr(name, data)
    return buffer.getvalue()


def pickle_in_archive(*others: str) -> bytes:
    """A pickle in an archive, and what else is there."""
    return zip_archive(**dict.fromkeys([*others, "m/data.pkl"], b""))


def torch_file(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        target.addfile(tarfile.TarInfo("model.onnx"))
    return buffer.getvalue()


def saved_model() -> bytes:
    return b"\x08\x01" + b"\x12\x03abc" * 2


def graph_def() -> bytes:
    return b"\x0a\x03abc" * 3 + b"\x22\x02\x08\x01"


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "torch, old": (lambda: torch_file({"w": torch.ones(1)}, _use_new_zipfile_serialization=False), "pickle"),
    "torch, new": (lambda: torch_file({"w": torch.ones(1)}), "pickle in an archive"),
    "torchscript": (lambda: zip_archive(**{"m/constants.pkl": b"", "m/data.pkl": b""}), "TorchScript"),
    "torchscript code": (
        lambda: zip_archive(**{"m/code/__torch__.py": b"", "m/data.pkl": b""}),
        "TorchScript",
    ),
    "export": (lambda: zip_archive(**{"m/archive_format": b"pt2", "m/data/c.pkl": b""}), "torch.export"),
    "old export": (lambda: zip_archive(**{"serialized_exported_program.json": b"{}"}), "torch.export"),
    "keras": (lambda: zip_archive(**{"config.json": b"{}", "model.weights.h5": b""}), "Keras"),
    "npz": (lambda: zip_archive(**{"a.npy": npy_file()}), "NumPy"),
    "zip": (lambda: zip_archive(**{"model.onnx": onnx_file()}), "zip archive"),
    "broken zip": (lambda: b"PK\x03\x04" + b"\x00" * 99, "zip archive"),
    "zip of the future": (
        lambda: pickle_in_archive().replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\x99"),
        "zip archive",
    ),
    "zip of no names": (lambda: pickle_in_archive("é").replace("é".encode(), b"\xff\xff"), "zip archive"),
    "zip of very many": (lambda: pickle_in_archive(*map(str, range(30_000))), "zip archive"),
    "saved model in zip": (lambda: zip_archive(**{"m/saved_model.pb": b""}), "SavedModel"),
    "gzip": (lambda: gzip.compress(onnx_file()), "gzip"),
    "bzip2": (lambda: bz2.compress(onnx_file()), "bzip2"),
    "xz": (lambda: lzma.compress(onnx_file()), "xz"),
    "tar": (tar_file, "tar archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + b"\x00" * 99, "HDF5"),
    "saved model": (saved_model, "SavedModel"),
    "graph def": (graph_def, "frozen TensorFlow graph"),
    "tflite": (lambda: b"\x1c\x00\x00\x00TFL3" + b"\x00" * 99, "TensorFlow Lite"),
    "npy": (npy_file, "NumPy"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + b"\x00" * 99, "an image"),
    "html": (lambda: b"<html></html>", "text"),
    "noise": (lambda: bytes(range(255, 0, -1)), "neither ONNX nor safetensors"),
    "nul": (lambda: b"\x00" * 100, "neither ONNX nor safetensors"),
    "json": (lambda: b'{"a": 1}', "neither ONNX nor safetensors"),
    "half an ONNX": (lambda: onnx_file()[:-5], "neither ONNX nor safetensors"),
    "ONNX and more": (lambda: onnx_file() + b"\xff", "neither ONNX nor safetensors"),
    "ONNX and fields of another": (lambda: onnx_file() + b"\x78\x01", "neither ONNX nor safetensors"),
    "ONNX of very many fields": (lambda: b"\x08\x01" * 100_000 + onnx_file(), "neither ONNX nor safetensors"),
    "ONNX of an endless number": (
        lambda: b"\x08" + b"\x80" * 10 + b"\x01" + onnx_file(),
        "neither ONNX nor safetensors",
    ),
    "ONNX without graph": (lambda: b"\x08\x07", "neither ONNX nor safetensors"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_format_is_recognized_by_content_and_refused(kind: str) -> None:
    make, name = FOREIGN[kind]
    with pytest.raises(InvalidModel, match=name) as refused:
        detect_format(make(), limit=LIMIT)
    assert "torch.onnx.export" in refused.value.detail, "what to do instead"
    assert refused.value.field == "file"


def test_only_the_start_of_a_pickle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(pickletools, "genops", lambda data: read.append(len(data)) or [])
    with pytest.raises(InvalidModel):
        detect_format(b"(" * 2**20, limit=LIMIT)
    assert read == [2**16]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused_and_not_loaded(protocol: int, tmp_path: Path) -> None:
    leaves = tmp_path / "ran"
    data = pickle.dumps(Payload(leaves), protocol)
    for file in (data, data[:-1] + b"." + b"\x00" * 50, zip_archive(**{"m/data.pkl": data})):
        with pytest.raises(InvalidModel, match=r"pickle.*would run whatever code"):
            detect_format(file, limit=LIMIT)
    assert not leaves.exists()
    pickle.loads(data)
    assert leaves.exists(), "the payload would have worked"


def test_onnx_and_safetensors_files_are_accepted() -> None:
    assert detect_format(onnx_file(), limit=LIMIT) == "onnx"
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        tensors = {"a": torch.ones(2, 3).to(dtype), "b": torch.zeros(0), "c": torch.ones(())}
        assert detect_format(save(tensors, {"format": "pt"}), limit=LIMIT) == "safetensors"


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x4B50, 0x8B1F, 0x5A4D, 0x3C])
def test_safetensors_header_length_is_not_taken_for_another_format(length: int) -> None:
    text = json.dumps(tensor_header()).encode().ljust(length)
    assert detect_format(safetensors_file(text), limit=LIMIT) == "safetensors"


def test_empty_and_too_large_files_are_refused() -> None:
    with pytest.raises(InvalidModel, match="empty"):
        detect_format(b"", limit=LIMIT)
    data = onnx_file()
    assert detect_format(data, limit=len(data)) == "onnx"
    with pytest.raises(ModelTooLarge, match="at most"):
        detect_format(data, limit=len(data) - 1)


def safetensors_file(header: Any, body: bytes = b"\x00" * 8, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor_header(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


EMPTY = tensor_header(shape=[0], data_offsets=[0, 0])["a"]
DAMAGED: dict[str, tuple[bytes, str]] = {
    "header beyond the file": (safetensors_file(tensor_header(), length=10_000), "claims"),
    "header of 2^63": (safetensors_file(tensor_header(), length=2**55), "claims"),
    "not JSON": (safetensors_file(b"{nonsense}"), "not JSON"),
    "deep JSON": (safetensors_file(b'{"a":' + b"[" * 9_000), "nested too deeply"),
    "many lists": (safetensors_file(b'{"a":[' + b"[]," * 300_000 + b"0]}"), "lists and objects"),
    "many values": (safetensors_file(b'{"__metadata__":{' + b'"":"",' * 250_000 + b'"":""}}'), "values"),
    "not UTF-8": (safetensors_file(b'{"\xff": 1}'), "not JSON"),
    "a list": (safetensors_file({"a": []}), "malformed"),
    "unknown key": (safetensors_file(tensor_header(code="x")), "malformed"),
    "unknown type": (safetensors_file(tensor_header(dtype="F31")), "not known"),
    "negative side": (safetensors_file(tensor_header(shape=[-2])), "malformed"),
    "float side": (safetensors_file(tensor_header(shape=[2.0])), "malformed"),
    "huge shape": (safetensors_file(tensor_header(shape=[2**40, 2**40])), "bytes that its shape needs"),
    "too few bytes": (safetensors_file(tensor_header(data_offsets=[0, 4])), "bytes that its shape needs"),
    "backwards": (safetensors_file(tensor_header(data_offsets=[8, 0])), "bytes that its shape needs"),
    "beyond the end": (safetensors_file(tensor_header(data_offsets=[8, 16])), "overlap, leave gaps"),
    "a gap before": (
        safetensors_file(tensor_header(data_offsets=[8, 16]), b"\x00" * 16),
        "overlap, leave gaps",
    ),
    "bytes left over": (safetensors_file(tensor_header(), b"\x00" * 9), "overlap, leave gaps"),
    "overlap": (safetensors_file({**tensor_header(), "b": tensor_header()["a"]}), "overlap, leave gaps"),
    "nothing": (safetensors_file({}, b""), "0 tensors"),
    "very many": (safetensors_file(dict.fromkeys(map(str, range(10_001)), EMPTY), b""), "10,001 tensors"),
    "a large header": (safetensors_file(b"{" + b" " * MAX_HEADER_BYTES + b"}"), "claims"),
    "metadata alone": (safetensors_file({"__metadata__": {"a": "b"}}, b""), "0 tensors"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_safetensors_header_is_refused(kind: str) -> None:
    data, why = DAMAGED[kind]
    with pytest.raises(InvalidModel, match=why):
        detect_format(data, limit=LIMIT)


def test_header_of_many_wrong_entries_is_refused_at_the_first() -> None:
    data = safetensors_file({str(number): {} for number in range(MAX_TENSORS)})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModel, match=r"malformed at 0\.dtype"):
            detect_format(data, limit=LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_truncated_and_mangled_files_do_not_break_the_reader() -> None:
    draw = np.random.default_rng(0)
    for whole in (onnx_file(), save({"a": torch.ones(5)}), pickle.dumps([1, 2], 0)):
        for _ in range(300):
            data = bytearray(whole[: draw.integers(1, len(whole) + 1)])
            data[draw.integers(len(data))] = draw.integers(256)
            try:
                assert detect_format(bytes(data), limit=LIMIT) in ("onnx", "safetensors")
            except InvalidModel:
                continue
