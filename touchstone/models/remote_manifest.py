"""Manifests of remote models. Never imports torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from touchstone.models.json_path import RowPath

PNG = "$image_png_base64"
TENSOR = "$tensor"
ROWS = "$rows"
"""Placeholders of a template: a string that becomes (or contains) the image as a PNG; one that becomes its
numbers, of all rows or, within rows, of one; and an object {"$rows": template}, which becomes a list of the
template filled for each row.
"""

SECRET = "$secret"  # noqa: S105 - a placeholder

MAX_DEPTH = 20
_FORBIDDEN = frozenset(
    ("host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "expect")
)
_HEADER = re.compile(r"([A-Za-z0-9-]{1,64}): ([\x20-\x7e]{1,200})")

JSON_BATCH, OIP_BATCH = 1, 16
MAX_FILES = 16
MAX_NUMBERS = 2**25


class _RemotePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Oip(_RemotePart):
    """Names of the Open Inference Protocol, version 2, as Triton, KServe, OpenVINO and others speak it."""

    model: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    version: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    input: str = Field("input", min_length=1, max_length=200, description="The input tensor's name.")
    output: str = Field("output", min_length=1, max_length=200, description="The output tensor's name.")
    datatype: Literal["FP32"] = "FP32"
    binary: bool = Field(
        False,
        description="Send the tensor as bytes after the JSON: far faster, if the server supports it.",
    )


def _children(template: JsonValue) -> list[JsonValue]:
    """The elements of a list or an object."""
    if isinstance(template, dict):
        return list(template.values())
    return template if isinstance(template, list) else []


def find_placeholders(template: JsonValue, depth: int = 0) -> list[str]:
    """The placeholders of a template, from outside in; raises ValueError where it is nested too deeply."""
    if depth > MAX_DEPTH:
        raise ValueError("request: it is nested too deeply")
    if isinstance(template, str):
        return [TENSOR] if template == TENSOR else [PNG] * template.count(PNG)
    here = [ROWS] if isinstance(template, dict) and set(template) == {ROWS} else []
    return here + [name for part in _children(template) for name in find_placeholders(part, depth + 1)]


class Remote(_RemotePart):
    """The address of a model, the requests to it, and how its answers are read."""

    url: str = Field(
        min_length=1,
        max_length=2_000,
        description="https://…; of `oip` the server's address, to which /v2/models/… is added.",
    )
    protocol: Literal["oip", "json"]
    oip: Oip | None = None
    request: Annotated[JsonValue, Field(description="Of `json`: the body, with placeholders for images.")] = (
        None
    )
    answer: (
        Annotated[str, Field(max_length=500), AfterValidator(lambda text: str(RowPath.parse(text)))] | None
    ) = Field(None, description="Of `json`: the path to the answer; its first [*] selects the rows.")
    answers: Literal["logits", "probabilities", "top-k", "labels"] = Field(
        description="The answer for a row: K logits, K probabilities, the most probable classes with their "
        "probabilities, or only a class."
    )
    keys: tuple[str, str] = Field(
        ("label", "score"), description="Of `top-k`: the names of class and probability in an entry."
    )
    batch: int | None = Field(
        None, ge=1, le=256, description=f"Rows of a request; {JSON_BATCH} for json, {OIP_BATCH} for oip."
    )
    parallel: int = Field(2, ge=1, le=16, description="Concurrent requests of each worker.")
    timeout: float = Field(30.0, ge=0.1, le=300, description="Maximum seconds of a request.")
    retries: int = Field(
        1,
        ge=0,
        le=3,
        description="How often a request that failed to connect, or was answered 429 or 503, is repeated.",
    )
    rate: float | None = Field(
        None, gt=0, le=1e6, description="Maximum rows a second, of all workers together."
    )
    budget: int | None = Field(
        None, ge=1, le=10**12, description="Maximum rows that are ever sent; repeated ones count again."
    )
    secret: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
        description="The name of a secret that the operator keeps in the worker's environment.",
    )
    secret_header: str = Field(
        f"Authorization: Bearer {SECRET}", description="The header with the secret.", max_length=300
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Remote:
        if self.protocol == "oip":
            self._check_oip()
        else:
            self._check_json()
        self._check_header()
        return self

    def _check_oip(self) -> None:
        if self.oip is None or self.request is not None or self.answer is not None:
            raise ValueError("oip: give model, input and output; request and answer are for json")
        if "?" in self.url:
            raise ValueError("url: for oip, give the server's address, to which a path is added")
        if self.answers not in ("logits", "probabilities"):
            raise ValueError("answers: for oip, the output tensor has logits or probabilities")

    def _check_json(self) -> None:
        if self.oip is not None or self.request is None or self.answer is None:
            raise ValueError("request: json needs request and answer; oip is for the protocol oip")
        placeholders = find_placeholders(self.request)
        if placeholders not in ([PNG], [TENSOR], [ROWS, PNG], [ROWS, TENSOR]):
            raise ValueError(
                f"request: it needs one {PNG} or one {TENSOR}, alone or within an object {{{ROWS!r}: …}}"
            )
        if self.batch_rows > 1 and not RowPath.parse(self.answer).over_rows:
            raise ValueError("answer: with several rows in a request, its path needs [*] to select them")
        if self.batch_rows > 1 and placeholders == [PNG]:
            raise ValueError(f"batch: {PNG} is one image; put it into {{{ROWS!r}: …}} to send several")

    def check_size(self, numbers: int) -> None:
        """Raise ValueError where images of so many numbers make concurrent requests too large."""
        rows = self.batch_rows * self.parallel
        if self.takes_files and self.batch_rows > MAX_FILES:
            raise ValueError(f"remote: batch: at most {MAX_FILES} files in a request")
        if not self.takes_files and rows * numbers > MAX_NUMBERS:
            raise ValueError(
                f"remote: batch: {rows} rows of {numbers:,} numbers at once are more than {MAX_NUMBERS:,}; "
                "use a smaller batch or fewer requests in parallel"
            )

    def _check_header(self) -> None:
        fits = _HEADER.fullmatch(self.secret_header)
        if (self.secret or "").endswith("_HOSTS"):
            raise ValueError("secret: names that end in _HOSTS are reserved for the hosts of a secret")
        if fits is None or SECRET not in fits[2] or fits[1].lower() in _FORBIDDEN:
            raise ValueError(f"secret_header: expected a header such as Authorization: Bearer {SECRET}")

    def __hash__(self) -> int:  # the template may contain unhashable values
        return hash(self.model_dump_json())

    @property
    def batch_rows(self) -> int:
        """Rows of a request."""
        return self.batch or (OIP_BATCH if self.protocol == "oip" else JSON_BATCH)

    @property
    def takes_files(self) -> bool:
        """Whether it receives 8-bit PNGs of the upload's size, not numbers of the network's input size."""
        return PNG in find_placeholders(self.request)

    @property
    def decisions_only(self) -> bool:
        """Whether an answer is a class without confidence."""
        return self.answers == "labels"

    def header(self, secret: str) -> tuple[str, str]:
        """The header that carries the secret; never to be shown."""
        name, _, value = self.secret_header.partition(": ")
        return name, value.replace(SECRET, secret)
