"""Reading a submission's body, multipart or JSON, into fields and the bytes of an image."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import Request
from starlette.exceptions import HTTPException

from service.submissions import multipart
from touchstone.errors import ImageTooLarge, InvalidImage, InvalidParameter
from touchstone.json_limits import JsonLimitError, JsonLimits

MULTIPART = "multipart/form-data"
JSON = "application/json"

PLAIN = JsonLimits(containers=1_000, values=10_000)
"""Of JSON with fields and at most one image."""

_ENVELOPE = 128 * 2**10
_DATA_URL = re.compile(r"data:[\w.+/;=-]{0,100}?;base64,", re.ASCII)
_WHITESPACE = b" \t\r\n\f\v"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]")


@dataclass(frozen=True)
class RawBody:
    """A body not yet parsed: parsing may take long, and is not done on the event loop."""

    content_type: str
    content: bytes


@dataclass(frozen=True)
class Body:
    """A parsed submission: fields not yet checked, and the image's bytes."""

    fields: dict[str, Any]
    image: bytes


def max_body_bytes(upload_limit: int) -> int:
    """The most bytes that a body with an image of the allowed size has; base64 takes four for three."""
    return upload_limit * 4 // 3 + _ENVELOPE


async def receive(request: Request, *types: str) -> RawBody:
    """Receive the body; 415 where its type is not one of `types`, by default multipart or JSON. An empty
    type stands for a missing one.
    """
    check_type(request, *(types or (MULTIPART, JSON)))
    # `request.body()` would keep it as long as the request lasts, which may be a minute of waiting.
    content = b"".join([piece async for piece in request.stream()])
    return RawBody(request.headers.get("content-type", ""), content)


def check_type(request: Request, *allowed: str) -> str:
    """The body's media type; 415 where that is none of these, or where the body is compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(
            415,
            "Content-Encoding: send the body as it is, not compressed",
            {"Accept-Encoding": "identity"},
        )
    found = _media_type(request.headers.get("content-type", ""))
    if found not in allowed:
        named = [name for name in allowed if name]
        raise HTTPException(415, f"Content-Type: expected {' or '.join(named)}", {"Accept": ", ".join(named)})
    return found


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def parse(received: RawBody, upload_limit: int) -> Body:
    """Fields and image of a received body."""
    fields = fields_of(received)
    image = fields.pop("image", None)
    if image is None:
        raise InvalidParameter("image: missing; a PNG, JPEG or WebP file is needed", field="image")
    files = [name[:60] for name, value in fields.items() if isinstance(value, bytes)]
    if files:
        raise InvalidParameter(f"{files[0]}: expected a value; only image is a file", field=files[0])
    return Body(fields, image_bytes(image, upload_limit))


def fields_of(received: RawBody) -> dict[str, Any]:
    """Every field of a received body, unchecked."""
    if _media_type(received.content_type) == MULTIPART:
        return _form_fields(received)
    return json_fields(received.content)


def _form_fields(received: RawBody) -> dict[str, Any]:
    try:
        return unique_fields(multipart.read(received.content, received.content_type))
    except multipart.FormError as error:
        raise_invalid(str(error)[:200])


def unique_fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Fields by name; raises `InvalidParameter` where one is given twice."""
    doubled = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if doubled:
        raise InvalidParameter(f"{doubled[0][:60]}: given more than once", field=doubled[0][:60])
    return dict(pairs)


def json_fields(text: bytes, limits: JsonLimits = PLAIN) -> dict[str, Any]:
    """The members of a JSON object, unchecked; 400 where the text is not one, or holds more than `limits`."""
    if not text.strip():
        raise_invalid("the body is empty; expected a JSON object")
    try:
        limits.check(text)
        _check_surrogates(text)
        value = json.loads(text.decode(), object_pairs_hook=unique_fields, parse_constant=_refuse_constant)
    except JsonLimitError as error:
        raise_invalid(f"the JSON holds too much: {error}")
    except ValueError as error:
        raise_invalid(f"not JSON: {str(error)[:200]}")
    if not isinstance(value, Mapping):
        raise_invalid("expected a JSON object whose members are the fields")
    return dict(value)


def _check_surrogates(text: bytes) -> None:
    """Raise ValueError for half a surrogate pair: JSON can express it, but nothing after it can."""
    if b"\\u" not in text:
        return
    escapes = text.replace(b"\\\\", b"__")
    halves = sum(1 for _ in _SURROGATE.finditer(escapes))
    if halves != 2 * sum(1 for _ in _SURROGATE_PAIR.finditer(escapes)):
        raise ValueError("surrogates are not allowed but in pairs")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def raise_invalid(detail: str) -> NoReturn:
    """Raise 400: the body cannot be read."""
    raise HTTPException(400, detail)


def image_bytes(value: Any, limit: int) -> bytes:
    """The bytes of an image that was sent as a file, a data URL or base64."""
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, str):
        data = _decode_text(value)
    else:
        raise InvalidParameter("image: expected a file, a data URL or base64", field="image")
    if len(data) > limit:
        raise ImageTooLarge(f"image: {len(data):,} bytes; at most {limit:,} are allowed", field="image")
    return data


def _decode_text(text: str) -> bytes:
    start = _DATA_URL.match(text)
    try:
        encoded = text[start.end() if start else 0 :].encode("ascii")
        return base64.b64decode(encoded.translate(None, _WHITESPACE), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "image: neither a file, nor a data URL (data:image/png;base64,…), nor base64", field="image"
        ) from None
