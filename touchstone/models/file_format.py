"""The format of a model file, detected from its bytes: nothing in it is loaded, unpacked or run."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Literal

from touchstone.errors import InvalidModel, ModelTooLarge
from touchstone.models import protobuf, safetensors_header
from touchstone.models.protobuf import Data

Format = Literal["onnx", "safetensors"]

EXPORT = (
    "Export the network to ONNX, with torch.onnx.export(model, (example,), 'model.onnx', dynamo=True, "
    "external_data=False) or tf2onnx; or save its weights alone with safetensors.torch.save_file and name "
    "the architecture"
)
RUNS_CODE = "loading it would run whatever code is in it"

_MAGIC: Mapping[bytes, str] = MappingProxyType(
    {
        b"\x1f\x8b": "gzip: unpack it first",
        b"BZh": "bzip2: unpack it first",
        b"\xfd7zXZ\x00": "xz: unpack it first",
        b"\x28\xb5\x2f\xfd": "Zstandard: unpack it first",
        b"7z\xbc\xaf\x27\x1c": "7-Zip: unpack it first",
        b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes it, whose layers may hold code",
        b"\x93NUMPY": "a NumPy array, which says nothing of the network around it",
        b"GGUF": "GGUF, made for language models",
        b"\x7fELF": "a program",
        b"MZ": "a program",
        b"\x89PNG": "an image",
        b"\xff\xd8\xff": "an image",
        b"<": "text (XML or HTML)",
        b"%PDF": "a PDF",
    }
)
# Formats of archives by the names in them; the first match counts.
_ARCHIVES = (
    (("/constants.pkl", "/code/__torch__.py"), f"a TorchScript archive: {RUNS_CODE}"),
    (
        ("/archive_format", "/serialized_exported_program.json"),
        f"an archive of torch.export: {RUNS_CODE}",
    ),
    ((".pkl",), f"a pickle in an archive, as torch.save writes it: {RUNS_CODE}"),
    (("/model.weights.h5",), "a Keras model, whose layers may hold code"),
    (("/saved_model.pb",), "an archive with a TensorFlow SavedModel"),
    ((".npy",), "NumPy arrays, which say nothing of the network around them"),
)
_PICKLE_HEAD_BYTES = 2**16
_ZIP_TAIL_BYTES = 2**20
"""Bytes at the end of an archive that may be its central directory, which is parsed completely."""
_MIN_PICKLE_OPCODES = 16
"""Opcodes in a row that make a file a pickle, even a truncated one."""


def detect_format(data: Data, *, limit: int) -> Format:
    """The format of the bytes, by their structure.

    Raises ModelTooLarge beyond `limit` bytes, and InvalidModel, which names any other format and what to do
    instead.
    """
    if len(data) > limit:
        raise ModelTooLarge(f"the file has {len(data):,} bytes; at most {limit:,} are allowed", field="file")
    if not data:
        raise InvalidModel("the file is empty", field="file")
    # First, because the length at the start of a safetensors file may look like any other format.
    if safetensors_header.looks_like_safetensors(data):
        safetensors_header.check_header(data)
        return "safetensors"
    foreign = _identify_foreign(data)
    if foreign is None and protobuf.is_onnx(data):
        return "onnx"
    raise InvalidModel(
        f"the file is {foreign or _identify_unmarked(data)}. It must be ONNX or safetensors. {EXPORT}.",
        field="file",
    )


def _identify_foreign(data: Data) -> str | None:
    """The name of another format that the first bytes show, if any."""
    for magic, name in _MAGIC.items():
        if data[: len(magic)] == magic:
            return name
    if data[:2] == b"PK":
        return _identify_archive(data)
    if data[4:8] == b"TFL3":
        return "a TensorFlow Lite model, which has no gradients"
    if data[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if data[:1] == b"\x80" and len(data) > 1 and data[1] <= 5:
        return f"a Python pickle, as torch.save wrote it before PyTorch 1.6: {RUNS_CODE}"
    return None


def _identify_archive(data: Data) -> str:
    names = list_entries(data)
    for ends, kind in _ARCHIVES:
        if any(f"/{name}".endswith(ends) for name in names):
            return kind
    return "a zip archive without an .onnx file, or a damaged one"


def list_entries(data: Data) -> list[str]:
    """Names in a zip archive, read from its central directory; none where that is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data[-_ZIP_TAIL_BYTES:])) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, EOFError):
        return []


def _identify_unmarked(data: Data) -> str:
    """The most likely format of a file without a signature."""
    if safetensors_header.has_header_brace(data):
        return "neither ONNX nor safetensors, or it is truncated: it announces a header that is missing"
    if protobuf.is_saved_model(data):
        return "a TensorFlow SavedModel; tf2onnx converts it"
    if protobuf.is_graph_def(data):
        return "a frozen TensorFlow graph; tf2onnx converts it"
    if _is_pickle(data):
        return f"a Python pickle: {RUNS_CODE}"
    return "neither ONNX nor safetensors, or it is damaged"


def _is_pickle(data: Data) -> bool:
    """Whether it parses as a pickle of the protocols without a signature; parsing its opcodes runs none."""
    seen = 0
    with suppress(Exception):  # the parser may raise anything on malformed bytes
        for instruction, _, _ in pickletools.genops(data[:_PICKLE_HEAD_BYTES]):
            seen += 1
            if instruction.name == "STOP":
                return True
    return seen > _MIN_PICKLE_OPCODES
