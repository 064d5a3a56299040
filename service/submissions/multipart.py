"""Parsing multipart/form-data without awaiting anything, so that it can run in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 64
MAX_TEXT = 64 * 2**10

Value = str | bytes
"""Text, or the bytes of a file."""


class FormError(Exception):
    """The body is not a valid form; the message says why."""


def read(content: bytes, content_type: str) -> list[tuple[str, Value]]:
    """The parts in order, by name; text is UTF-8. Raises `FormError`."""
    form = Form(content_type)
    form.feed(content)
    return form.parts()


class Sink(Protocol):
    """Receives the bytes of a part that is not kept in memory."""

    def write(self, data: bytes, /) -> object:
        """Write the next bytes."""


@dataclass(frozen=True)
class FormLimits:
    """The most bytes of one part, as text and as a file."""

    text: int = MAX_TEXT
    file: int = 2**40


class Form:
    """A form that is fed in chunks; files named in `sinks` are written there, and are empty in `parts`.

    Everything raises `FormError`.
    """

    def __init__(
        self, content_type: str, *, sinks: Mapping[str, Sink] | None = None, limits: FormLimits | None = None
    ) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise FormError("Content-Type: the boundary is missing")
        self._parts = _Parts(sinks or {}, limits or FormLimits())
        self._parser = _parser(boundary, self._parts)

    def feed(self, content: bytes) -> None:
        """Parse the next bytes."""
        try:
            self._parser.write(content)
        except (FormParserError, UnicodeDecodeError) as error:
            raise FormError(f"not multipart/form-data: {error}") from None

    def parts(self) -> list[tuple[str, Value]]:
        """All parts in order, once the form is complete."""
        if not self._parts.ended:
            raise FormError("the form has no end: its closing boundary is missing")
        return self._parts.values

    def filenames(self) -> Mapping[str, str]:
        """The names that the files had at the sender, without folders, by their fields."""
        return self._parts.filenames


def _parser(boundary: bytes, parts: _Parts) -> MultipartParser:
    try:
        return MultipartParser(boundary, parts.callbacks())
    except FormParserError as error:
        raise FormError(f"Content-Type: {error}") from None


@dataclass
class _Parts:
    """Collects the parts from the parser's callbacks."""

    sinks: Mapping[str, Sink]
    limits: FormLimits
    values: list[tuple[str, Value]] = field(default_factory=list)
    filenames: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._form_end,
        }

    def _begin(self) -> None:
        if len(self.values) == MAX_PARTS:
            raise FormParserError(f"more than {MAX_PARTS} parts")
        self._disposition = b""
        self._name = self._value = b""
        self._pieces: list[bytes] = []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise FormParserError("a part has no name")
        self._field, self._is_file = options[b"name"].decode(), b"filename" in options
        if self._is_file:
            name = options[b"filename"].decode("utf-8", errors="replace")
            self.filenames[self._field] = name.replace("\\", "/").rpartition("/")[2]
        self._sink = self.sinks.get(self._field) if self._is_file else None
        self._size, self._limit = 0, self.limits.file if self._is_file else self.limits.text

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(data[start:end])
            return
        self._size += end - start
        if self._size > self._limit:
            raise FormParserError(f"a field has more than {self._limit:,} bytes")
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        content = b"".join(self._pieces)
        self.values.append((self._field, content if self._is_file else content.decode()))

    def _form_end(self) -> None:
        self.ended = True
