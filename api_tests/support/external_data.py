"""ONNX files with their weights in other files, as onnx itself writes them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from api_tests.support.own_models import linear_onnx

DATA = "m.onnx.data"


def write_external(folder: Path, data: bytes | None = None, **options: object) -> Path:
    """Write m.onnx and m.onnx.data; returns the path of the first."""
    model = onnx.load_model_from_string(linear_onnx() if data is None else data)
    path = folder / "m.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, **{"location": DATA, "size_threshold": 0, **options}
    )  # type: ignore[arg-type]
    return path


def change_entries(graph: bytes, **entries: str) -> bytes:
    """The file with another location, offset or length of its first weight; an empty one is left out."""
    model = onnx.load_model_from_string(graph)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        if value:
            tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
