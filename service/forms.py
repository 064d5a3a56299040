"""Reading multipart/form-data that is at hand as a whole, so that it can be done off the event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MOST_PARTS = 64
LONGEST_TEXT = 64 * 2**10

Value = str | bytes
"""Text, or the bytes of a file."""


class FormError(Exception):
    """The body is not the form that it should be; the sentence says why."""


def read(content: bytes, content_type: str) -> list[tuple[str, Value]]:
    """The parts in order, by name; text is UTF-8. Raises `FormError`."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise FormError("Content-Type: the boundary is missing")
    parts = _Parts()
    try:
        MultipartParser(boundary, parts.callbacks()).write(content)
    except (FormParserError, UnicodeDecodeError) as error:
        raise FormError(f"not multipart/form-data: {error}") from None
    if not parts.ended:
        raise FormError("the form has no end: its closing boundary is missing")
    return parts.values


@dataclass
class _Parts:
    """Collects what the parser finds."""

    values: list[tuple[str, Value]] = field(default_factory=list)
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
        if len(self.values) == MOST_PARTS:
            raise FormParserError(f"more than {MOST_PARTS} parts")
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
        self._options = parse_options_header(self._disposition)[1]
        if b"name" not in self._options:
            raise FormParserError("a part has no name")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        content = b"".join(self._pieces)
        is_file = b"filename" in self._options
        if not is_file and len(content) > LONGEST_TEXT:
            raise FormParserError(f"a field has more than {LONGEST_TEXT:,} bytes")
        self.values.append((self._options[b"name"].decode(), content if is_file else content.decode()))

    def _form_end(self) -> None:
        self.ended = True
