"""Requests to remote models and their responses: rows of numbers on our side, bytes on the wire."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from touchstone.errors import Failure, RemoteAnswer
from touchstone.images import encode
from touchstone.models.json_path import RowPath
from touchstone.models.manifest import Manifest
from touchstone.models.remote_manifest import PNG, ROWS, TENSOR, Oip, Remote

Images = Sequence[NDArray[np.float32]]
"""Images (C, H, W): as the network takes them, or in [0,1] where files are sent."""

Scores = NDArray[np.float64]

MIN_PROBABILITY = 1e-12
"""Smaller probabilities are raised to this one: logarithms must be finite."""

MAX_ANSWER_BYTES = 2**26
MAX_FLOAT32 = float(np.finfo(np.float32).max)
SUM_TOLERANCE = 0.01
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
_LENGTH = "Inference-Header-Content-Length"


class RemoteProtocol:
    """Builds the requests to one remote model and reads its responses."""

    def __init__(self, manifest: Manifest, remote: Remote) -> None:
        self._manifest = manifest
        self._remote = remote
        self._labels = {name: index for index, name in reversed(list(enumerate(manifest.classes)))}
        self._readers: Mapping[str, Callable[[Any], Scores]] = {
            "logits": self._read_logits,
            "probabilities": self._read_probabilities,
            "top-k": self._read_top_k,
            "labels": self._read_label,
        }

    @property
    def url(self) -> str:
        """Where requests go."""
        oip = self._remote.oip
        if oip is None:
            return self._remote.url
        version = f"/versions/{oip.version}" if oip.version else ""
        return f"{self._remote.url.rstrip('/')}/v2/models/{oip.model}{version}/infer"

    def max_bytes(self, rows: int) -> int:
        """The largest response that is accepted."""
        return min(2**20 + 200 * rows * len(self._manifest.classes), MAX_ANSWER_BYTES)

    def build_request(self, rows: Images) -> tuple[bytes, dict[str, str]]:
        """The body of a request and its headers."""
        if self._remote.oip is not None:
            return _build_oip_request(self._remote.oip, np.stack(list(map(self._to_layout, rows))))
        filled = self._fill_template(self._remote.request, rows)
        return json.dumps(filled).encode(), dict(_HEADERS)

    def read_scores(self, body: bytes, rows: int) -> list[Scores | RemoteAnswer]:
        """Each row's logits (K,), or what is wrong with its answer.

        Raises RemoteAnswer where the body cannot be split into rows.
        """
        answers = self._read_rows(_parse_json(body), rows)
        if len(answers) != rows:
            raise RemoteAnswer(
                f"{self._manifest.id} answered {len(answers)} rows where {rows} were asked about"
            )
        return [self._read_row(answer) for answer in answers]

    def _read_row(self, answer: Any) -> Scores | RemoteAnswer:
        try:
            return self._readers[self._remote.answers](answer)
        except RemoteAnswer as wrong:
            return wrong

    def _read_rows(self, value: Any, rows: int) -> Sequence[Any]:
        if self._remote.oip is not None:
            return _read_oip_rows(value, self._remote.oip, rows)
        path = RowPath.parse(self._remote.answer or "$")
        try:
            return path.rows(value)
        except LookupError as error:
            raise RemoteAnswer(
                f"{self._manifest.id} answered JSON in which {path} leads nowhere: "
                f"there is no {error.args[0]}"
            ) from None

    def _fill_template(self, template: JsonValue, rows: Images) -> Any:
        """The template with its placeholders replaced; within {"$rows": …} once for each row."""
        if isinstance(template, dict):
            if set(template) == {ROWS}:
                return [self._fill_for_row(template[ROWS], row) for row in rows]
            return {name: self._fill_template(part, rows) for name, part in template.items()}
        if isinstance(template, list):
            return [self._fill_template(part, rows) for part in template]
        if template == TENSOR:
            return [self._to_layout(row).tolist() for row in rows]
        return self._fill_for_row(template, rows[0])

    def _fill_for_row(self, template: JsonValue, row: NDArray[np.float32]) -> Any:
        if isinstance(template, dict):
            return {name: self._fill_for_row(part, row) for name, part in template.items()}
        if isinstance(template, list):
            return [self._fill_for_row(part, row) for part in template]
        if template == TENSOR:
            return self._to_layout(row).tolist()
        if isinstance(template, str) and PNG in template:
            return template.replace(PNG, _encode_png(row))
        return template

    def _to_layout(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        return row.transpose(1, 2, 0) if self._manifest.input.layout == "nhwc" else row

    def _read_logits(self, answer: Any) -> Scores:
        if isinstance(answer, Mapping):
            answer = self._order_by_class(answer)
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            self._reject("a list of numbers")
        if len(answer) != len(self._manifest.classes):
            self._reject(f"{len(self._manifest.classes)} numbers, not {len(answer)}")
        return np.array([self._read_number(value) for value in answer])

    def _read_probabilities(self, answer: Any) -> Scores:
        probabilities = self._read_logits(answer)
        if probabilities.min() < 0 or abs(probabilities.sum() - 1) > SUM_TOLERANCE:
            self._reject("probabilities of 0 to 1 that add up to 1")
        logits: Scores = np.log(np.maximum(probabilities, MIN_PROBABILITY))
        return logits

    def _read_top_k(self, answer: Any) -> Scores:
        """The probabilities of the likeliest classes; the rest is shared by the others, none above those."""
        known = dict(self._read_entry(entry) for entry in self._read_entries(answer))
        left = 1 - sum(known.values())
        if not known or min(known.values()) < 0 or left < -SUM_TOLERANCE:
            self._reject("the likeliest classes, with probabilities that add up to 1 at most")
        others = max(1, len(self._manifest.classes) - len(known))
        probabilities = np.full(len(self._manifest.classes), min([max(left, 0) / others, *known.values()]))
        probabilities[list(known)] = list(known.values())
        logits: Scores = np.log(np.maximum(probabilities, MIN_PROBABILITY))
        return logits

    def _read_entries(self, answer: Any) -> list[Any]:
        if isinstance(answer, Mapping):
            return list(answer.items())
        if not isinstance(answer, list):
            self._reject("a list of classes with their probabilities")
        return answer

    def _read_entry(self, entry: Any) -> tuple[int, float]:
        """The class and the probability of [class, probability] or of an object with both."""
        label, score = self._remote.keys
        if isinstance(entry, Mapping) and label in entry and score in entry:
            entry = (entry[label], entry[score])
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
            self._reject(f"entries with {label!r} and {score!r}")
        return self._read_class(entry[0]), self._read_number(entry[1])

    def _read_label(self, answer: Any) -> Scores:
        """The class that was answered has probability one."""
        logits = np.full(len(self._manifest.classes), math.log(MIN_PROBABILITY))
        logits[self._read_class(answer)] = 0.0
        return logits

    def _read_class(self, label: Any) -> int:
        if isinstance(label, str) and label in self._labels:
            return self._labels[label]
        if isinstance(label, bool) or not isinstance(label, str | int):
            self._reject("classes by index or by name")
        try:
            return self._manifest.resolve_label(label)
        except Failure:
            self._reject("classes that its manifest names")

    def _order_by_class(self, answer: Mapping[str, Any]) -> list[Any]:
        """A number for each class in order, from an object that has them by name."""
        missing = [name for name in self._manifest.classes if name not in answer]
        if missing or len(answer) != len(self._manifest.classes):
            self._reject("one number for each class that its manifest names")
        return [answer[name] for name in self._manifest.classes]

    def _read_number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._reject("numbers")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or abs(number) > MAX_FLOAT32:
            self._reject("finite numbers")
        return number

    def _reject(self, expected: str) -> NoReturn:
        raise RemoteAnswer(
            f"{self._manifest.id} did not answer as its manifest declares: expected {expected}"
        )


def _encode_png(row: NDArray[np.float32]) -> str:
    pixels = np.rint(row * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return base64.b64encode(encode(pixels)).decode()


def _build_oip_request(oip: Oip, batch: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    tensor: dict[str, Any] = {"name": oip.input, "shape": list(batch.shape), "datatype": oip.datatype}
    tensor |= (
        {"parameters": {"binary_data_size": batch.nbytes}} if oip.binary else {"data": batch.ravel().tolist()}
    )
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": oip.output}]}).encode()
    if not oip.binary:
        return head, dict(_HEADERS)
    headers = {**_HEADERS, "Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
    return head + batch.astype("<f4").tobytes(), headers


def _read_oip_rows(value: Any, oip: Oip, rows: int) -> list[Any]:
    """The rows of the output tensor, whether its data are flat or nested."""
    outputs = value.get("outputs") if isinstance(value, dict) else None
    each = outputs if isinstance(outputs, list) else []
    named = [one for one in each if isinstance(one, dict) and one.get("name") == oip.output]
    data = named[0].get("data") if named else None
    if not isinstance(data, list) or not data:
        raise RemoteAnswer(f"the answer has no output named {oip.output!r} with its data")
    if isinstance(data[0], list):
        return data
    if len(data) % rows:
        raise RemoteAnswer(f"the answer has {len(data)} numbers, which {rows} rows cannot share")
    size = len(data) // rows
    return [data[at : at + size] for at in range(0, len(data), size)]


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteAnswer("the answer is not JSON") from None
