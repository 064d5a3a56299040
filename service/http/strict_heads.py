"""Heads of requests that have one reading only: a proxy in front must not see other requests in the same
bytes.
"""

from __future__ import annotations

from h11 import RemoteProtocolError
from h11._receivebuffer import ReceiveBuffer


class StrictReceiveBuffer(ReceiveBuffer):
    """What a connection has received. h11 also accepts lines that end in a line feed alone, and headers that
    go on in the next line, as RFC 9112 permits; here both are errors, in heads and in trailers.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines before an empty one, once it has been received. Raises RemoteProtocolError."""
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        if before - len(self) != sum(len(line) + 2 for line in (*lines, b"")):
            raise RemoteProtocolError("a line of the head does not end in CR LF")
        if any(line.startswith((b" ", b"\t")) for line in lines):
            raise RemoteProtocolError("a header goes on in the next line")
        return lines
