"""Reading a submission's body: multipart or JSON, one way into fields and the bytes of an image."""

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
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from touchstone.errors import ImageTooLarge, InvalidImage, InvalidParameter

MULTIPART = "multipart/form-data"
JSON = "application/json"

_MOST_PARTS = 64
_TEXT_SIZE = 64 * 2**10
_DATA_URL = re.compile(r"data:[\w.+/;=-]{0,100}?;base64,", re.ASCII)


@dataclass(frozen=True)
class Body:
    """A submission as it came: fields still unchecked, and the image's bytes."""

    fields: dict[str, Any]
    image: bytes


Received = FormData | bytes
"""A form, or the bytes of a JSON text that is still to be parsed, which is not done on the event loop."""


def most_bytes(upload_limit: int) -> int:
    """The most bytes that a body with an image of the allowed size has; base64 takes four for three."""
    return upload_limit * 4 // 3 + 2 * _TEXT_SIZE


async def receive(request: Request) -> Received:
    """Take the body in; 415 where its type is neither of the two, 400 where it is not what it says."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(
            415,
            "Content-Encoding: send the body as it is, not compressed",
            {"Accept-Encoding": "identity"},
        )
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == JSON:
        return await request.body()
    if media == MULTIPART:
        return await _form(request)
    raise HTTPException(
        415, f"Content-Type: expected {MULTIPART} or {JSON}", {"Accept": f"{MULTIPART}, {JSON}"}
    )


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=_MOST_PARTS, max_fields=_MOST_PARTS, max_part_size=_TEXT_SIZE)
    except (HTTPException, ClientDisconnect):
        raise
    except Exception:  # noqa: BLE001 - the parser hands on whatever a hostile header makes its codecs raise
        _invalid("the multipart body cannot be read")


def parse(received: Received, upload_limit: int) -> Body:
    """Fields and image of a body that was taken in; may take long for a large one."""
    fields = _form_fields(received) if isinstance(received, FormData) else _json_fields(received)
    image = fields.pop("image", None)
    if image is None:
        raise InvalidParameter("image: missing; a PNG, JPEG or WebP file is needed", field="image")
    files = [name for name, value in fields.items() if isinstance(value, UploadFile)]
    if files:
        raise InvalidParameter(
            f"{files[0][:60]}: expected a value, not a file; only image is a file", field=files[0][:60]
        )
    return Body(fields, _image(image, upload_limit))


def _form_fields(form: FormData) -> dict[str, Any]:
    return _once(form.multi_items())


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    doubled = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if doubled:
        raise InvalidParameter(f"{doubled[0][:60]}: given more than once", field=doubled[0][:60])
    return dict(pairs)


def _json_fields(text: bytes) -> dict[str, Any]:
    if not text.strip():
        _invalid("the body is empty; expected a JSON object")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        _invalid("the JSON is nested too deeply")
    except ValueError as error:
        _invalid(f"not JSON: {str(error)[:200]}")
    if not isinstance(value, Mapping):
        _invalid("expected a JSON object whose members are the fields")
    return dict(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str):
                text.encode()  # half a surrogate pair can be written in JSON, but not in anything after it
    return _once(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _invalid(detail: str) -> NoReturn:
    raise HTTPException(400, detail)


def _image(value: Any, limit: int) -> bytes:
    if isinstance(value, UploadFile):
        data = value.file.read()
    elif isinstance(value, str):
        data = _from_text(value)
    else:
        raise InvalidParameter("image: expected a file, a data URL or base64", field="image")
    if len(data) > limit:
        raise ImageTooLarge(f"image: {len(data):,} bytes; at most {limit:,} are allowed", field="image")
    return data


def _from_text(text: str) -> bytes:
    start = _DATA_URL.match(text)
    try:
        return base64.b64decode("".join(text[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "image: neither a file, nor a data URL (data:image/png;base64,…), nor base64", field="image"
        ) from None
