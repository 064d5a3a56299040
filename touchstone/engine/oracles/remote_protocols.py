"""What is sent to a remote model and how its answers are read: rows of numbers here, bytes there."""

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

Rows = Sequence[NDArray[np.float32]]
"""Images (C, H, W): as the network takes them, or in [0,1] where files are sent."""

Scores = NDArray[np.float64]

LEAST = 1e-12
"""The smallest probability that a class is given: its logarithm must be finite."""

MOST_BYTES = 2**26
LARGEST = float(np.finfo(np.float32).max)
SUM_TOLERANCE = 0.01
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
_LENGTH = "Inference-Header-Content-Length"


class Protocol:
    """How one remote model is spoken to."""

    def __init__(self, card: Manifest, remote: Remote) -> None:
        self._card = card
        self._remote = remote
        self._labels = {name: index for index, name in reversed(list(enumerate(card.classes)))}
        self._read: Mapping[str, Callable[[Any], Scores]] = {
            "logits": self._logits,
            "probabilities": self._probabilities,
            "top-k": self._top,
            "labels": self._label,
        }

    @property
    def url(self) -> str:
        """Where requests go."""
        oip = self._remote.oip
        if oip is None:
            return self._remote.url
        version = f"/versions/{oip.version}" if oip.version else ""
        return f"{self._remote.url.rstrip('/')}/v2/models/{oip.model}{version}/infer"

    def most_bytes(self, rows: int) -> int:
        """As long as an answer may be."""
        return min(2**20 + 200 * rows * len(self._card.classes), MOST_BYTES)

    def request(self, rows: Rows) -> tuple[bytes, dict[str, str]]:
        """A body, and the headers that belong to it."""
        if self._remote.oip is not None:
            return _oip_request(self._remote.oip, np.stack(list(map(self._laid_out, rows))))
        filled = self._filled(self._remote.request, rows)
        return json.dumps(filled).encode(), dict(_HEADERS)

    def scores(self, body: bytes, rows: int) -> list[Scores | RemoteAnswer]:
        """Each row's logits (K,), or what is wrong with its answer.

        Raises RemoteAnswer where the body cannot be told into rows.
        """
        answers = self._answers(_parsed(body), rows)
        if len(answers) != rows:
            raise RemoteAnswer(f"{self._card.id} answered {len(answers)} rows where {rows} were asked about")
        return [self._row(answer) for answer in answers]

    def _row(self, answer: Any) -> Scores | RemoteAnswer:
        try:
            return self._read[self._remote.answers](answer)
        except RemoteAnswer as wrong:
            return wrong

    def _answers(self, value: Any, rows: int) -> Sequence[Any]:
        if self._remote.oip is not None:
            return _oip_rows(value, self._remote.oip, rows)
        path = RowPath.parse(self._remote.answer or "$")
        try:
            return path.rows(value)
        except LookupError as error:
            raise RemoteAnswer(
                f"{self._card.id} answered JSON in which {path} leads nowhere: there is no {error.args[0]}"
            ) from None

    def _filled(self, template: JsonValue, rows: Rows) -> Any:
        """The template with its marks replaced; within {"$rows": …} once for each row."""
        if isinstance(template, dict):
            if set(template) == {ROWS}:
                return [self._filled_one(template[ROWS], row) for row in rows]
            return {name: self._filled(part, rows) for name, part in template.items()}
        if isinstance(template, list):
            return [self._filled(part, rows) for part in template]
        if template == TENSOR:
            return [self._laid_out(row).tolist() for row in rows]
        return self._filled_one(template, rows[0])

    def _filled_one(self, template: JsonValue, row: NDArray[np.float32]) -> Any:
        if isinstance(template, dict):
            return {name: self._filled_one(part, row) for name, part in template.items()}
        if isinstance(template, list):
            return [self._filled_one(part, row) for part in template]
        if template == TENSOR:
            return self._laid_out(row).tolist()
        if isinstance(template, str) and PNG in template:
            return template.replace(PNG, _png(row))
        return template

    def _laid_out(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        return row.transpose(1, 2, 0) if self._card.input.layout == "nhwc" else row

    def _logits(self, answer: Any) -> Scores:
        if isinstance(answer, Mapping):
            answer = self._by_name(answer)
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            self._wrong("a list of numbers")
        if len(answer) != len(self._card.classes):
            self._wrong(f"{len(self._card.classes)} numbers, not {len(answer)}")
        return np.array([self._number(value) for value in answer])

    def _probabilities(self, answer: Any) -> Scores:
        shares = self._logits(answer)
        if shares.min() < 0 or abs(shares.sum() - 1) > SUM_TOLERANCE:
            self._wrong("probabilities of 0 to 1 that add up to 1")
        logits: Scores = np.log(np.maximum(shares, LEAST))
        return logits

    def _top(self, answer: Any) -> Scores:
        """The likeliest classes' probabilities; what is left is shared by the others, none above those."""
        told = dict(self._entry(entry) for entry in self._entries(answer))
        left = 1 - sum(told.values())
        if not told or min(told.values()) < 0 or left < -SUM_TOLERANCE:
            self._wrong("the likeliest classes, with probabilities that add up to 1 at most")
        others = max(1, len(self._card.classes) - len(told))
        shares = np.full(len(self._card.classes), min([max(left, 0) / others, *told.values()]))
        shares[list(told)] = list(told.values())
        logits: Scores = np.log(np.maximum(shares, LEAST))
        return logits

    def _entries(self, answer: Any) -> list[Any]:
        if isinstance(answer, Mapping):
            return list(answer.items())
        if not isinstance(answer, list):
            self._wrong("a list of classes with their probabilities")
        return answer

    def _entry(self, entry: Any) -> tuple[int, float]:
        """The class and the probability of [class, probability] or of an object with both."""
        label, score = self._remote.keys
        if isinstance(entry, Mapping) and label in entry and score in entry:
            entry = (entry[label], entry[score])
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
            self._wrong(f"entries with {label!r} and {score!r}")
        return self._class(entry[0]), self._number(entry[1])

    def _label(self, answer: Any) -> Scores:
        """All that is known: this class, and no other."""
        shares = np.full(len(self._card.classes), math.log(LEAST))
        shares[self._class(answer)] = 0.0
        return shares

    def _class(self, named: Any) -> int:
        if isinstance(named, str) and named in self._labels:
            return self._labels[named]
        if isinstance(named, bool) or not isinstance(named, str | int):
            self._wrong("classes by index or by name")
        try:
            return self._card.label(named)
        except Failure:
            self._wrong("classes that its manifest names")

    def _by_name(self, answer: Mapping[str, Any]) -> list[Any]:
        """A number for each class, from an object that has them by name."""
        missing = [name for name in self._card.classes if name not in answer]
        if missing or len(answer) != len(self._card.classes):
            self._wrong("one number for each class that its manifest names")
        return [answer[name] for name in self._card.classes]

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong("numbers")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or abs(number) > LARGEST:
            self._wrong("finite numbers")
        return number

    def _wrong(self, wanted: str) -> NoReturn:
        raise RemoteAnswer(f"{self._card.id} did not answer as its manifest declares: expected {wanted}")


def _png(row: NDArray[np.float32]) -> str:
    pixels = np.rint(row * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return base64.b64encode(encode(pixels)).decode()


def _oip_request(oip: Oip, batch: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    tensor: dict[str, Any] = {"name": oip.input, "shape": list(batch.shape), "datatype": oip.datatype}
    tensor |= (
        {"parameters": {"binary_data_size": batch.nbytes}} if oip.binary else {"data": batch.ravel().tolist()}
    )
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": oip.output}]}).encode()
    if not oip.binary:
        return head, dict(_HEADERS)
    headers = {**_HEADERS, "Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
    return head + batch.astype("<f4").tobytes(), headers


def _oip_rows(value: Any, oip: Oip, rows: int) -> list[Any]:
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


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteAnswer("the answer is no JSON") from None
