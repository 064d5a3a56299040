"""The small files that `make test` checks: one for each kind of structure that exporters write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx

from tools.exporters.protocol import Facts

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "api_tests/models/exported"
MANIFEST = SAMPLES / "manifest.json"

CASES = (
    *(f"own/convolutional/torch.onnx {exporter}" for exporter in ("dynamo", "TorchScript")),
    "own/convolutional/torch.onnx dynamo, not optimized",
    "own/convolutional/torch.onnx TorchScript, half",
    "own/convolutional/onnxruntime.transformers float16",
    "own/mixed/torch.onnx dynamo",
    "own/lstm/torch.onnx TorchScript",
    "own/gru/torch.onnx dynamo",
    "own/looped/torch.onnx TorchScript, scripted",
    "transformers/ViT/torch.onnx dynamo",
    "transformers/ViT/onnxsim",
    "transformers/Swin/torch.onnx dynamo",
    "keras/Sequential/Keras export",
    "keras/functional/tf2onnx",
    "keras/functional/tf2onnx inputs-as-nchw",
    "paddle/convolutional/paddle2onnx",
    "paddle/attention/paddle2onnx",
)


def keep(case: str, path: Path, facts: Facts) -> None:
    """Keep a file, if it is of a case that is tested."""
    if case in CASES:
        name = re.sub(r"[^a-z0-9]+", "-", case.lower()) + ".onnx"
        (SAMPLES / name).write_bytes(strip(path))
        known = {one["file"]: one for one in read_manifest()} | {name: {"file": name, "case": case, **facts}}
        MANIFEST.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n")


def read_manifest() -> list[dict[str, Any]]:
    """The kept files, each with what its manifest needs."""
    found: list[dict[str, Any]] = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
    return found


def strip(path: Path) -> bytes:
    """The file without its exporter's notes: most of its size, and full of paths of this machine."""
    model = onnx.load(path)
    notes = (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer)
    for part in (*notes, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return bytes(model.SerializeToString())
