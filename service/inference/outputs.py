"""Builds a response of the Open Inference Protocol from logits: JSON, with or without binary tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from service.inference.inputs import HEADER_LENGTH
from service.inference.protocol import InferenceRequest, WantedOutput
from service.submissions.bodies import JSON
from touchstone.errors import InvalidParameter
from touchstone.models.manifest import Manifest
from touchstone.models.output_activation import restore_logits

BINARY = "application/octet-stream"

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class _TensorData:
    """An output: numbers (N, K), or texts (N, n)."""

    datatype: str
    values: NDArray[Any]

    def to_json(self) -> dict[str, Any]:
        return {"data": self.values.ravel().tolist()}

    def to_bytes(self) -> bytes:
        if self.datatype != "BYTES":
            return self.values.astype("<f4").tobytes()
        return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, self.values.flat))


def check(request: InferenceRequest, classes: int) -> None:
    """Raise `InvalidParameter` where more classes are requested than the model has."""
    for output in request.wanted_outputs():
        if output.parameters.classification > classes:
            raise InvalidParameter(
                f"classification: {output.parameters.classification} classes, but the model has {classes}",
                field="outputs",
            )


def build_response(request: InferenceRequest, manifest: Manifest, logits: Logits) -> Response:
    """A response with the requested outputs, in the requested order and form."""
    shown, tail = [], []
    for wanted in request.wanted_outputs():
        tensor = _tensor(wanted, manifest, logits)
        described = {"name": wanted.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)}
        if request.wants_bytes(wanted):
            tail.append(tensor.to_bytes())
            shown.append({**described, "parameters": {"binary_data_size": len(tail[-1])}})
        else:
            shown.append({**described, **tensor.to_json()})
    named = {"id": request.id} if request.id is not None else {}
    head = {"model_name": manifest.id, "model_version": manifest.digest, **named, "outputs": shown}
    return _encode(head, tail)


def _encode(head: Mapping[str, Any], tail: Sequence[bytes]) -> Response:
    text = json.dumps(head).encode()
    if not tail:
        return Response(text, media_type=JSON)
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(text + b"".join(tail), headers=headers, media_type=BINARY)


def _tensor(wanted: WantedOutput, manifest: Manifest, logits: Logits) -> _TensorData:
    if wanted.name == "logits":
        values = restore_logits(logits, manifest.output_activation)
    else:
        values = manifest.confidences(logits).astype(np.float32)
    if wanted.parameters.classification:
        return _TensorData("BYTES", _top_classes(values, manifest.classes, wanted.parameters.classification))
    return _TensorData("FP32", values)


def _top_classes(values: Logits, names: Sequence[str], count: int) -> NDArray[Any]:
    """The most likely classes in Triton's format, the most likely first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [
        [f"{row[label]:f}:{label}:{names[label]}" for label in best]
        for row, best in zip(values, order, strict=True)
    ]
    return np.array(texts, dtype=object)
