"""`python -m touchstone.sandbox.decoder`: decode uploads in a process that they may crash.

Standard input is one end of a `multiprocessing.Pipe`. Each message on it is a letter for the requested format
and an upload; two come back: JSON that describes the image or the error, and the bytes of the image.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image, MpoImagePlugin, WebPImagePlugin  # noqa: F401 - `preinit` leaves these out

from touchstone.errors import Failure
from touchstone.images import Pixels, decode, encode
from touchstone.sandbox.confinement import confine

CPU_SECONDS = 2
"""CPU time for decoding one upload; the largest images take up to 0.7 s, at full load."""

CONVERSION_SECONDS = 20
"""CPU time for all that follows, which depends on the number of pixels alone: conversions and the PNG."""

MEMORY = 768 * 2**20
"""While an image of the largest size is converted, up to six copies of it are in memory."""

PNG, RAW = b"p", b"r"

READY = b"ready"

_FORMS: dict[bytes, Callable[[Pixels], bytes]] = {PNG: encode, RAW: lambda pixels: pixels.tobytes()}


def main() -> None:
    """Decode until the other end of the pipe is closed."""
    connection = Connection(os.dup(0))
    Image.preinit()
    confine(memory=MEMORY, max_file_bytes=0)
    connection.send_bytes(READY)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        head, content = _decode(request[:1], request[1:])
        connection.send_bytes(json.dumps(head).encode())
        connection.send_bytes(content)


def _decode(form: bytes, upload: bytes) -> tuple[dict[str, Any], bytes]:
    _limit_cpu(CPU_SECONDS)
    try:
        decoded = decode(upload, on_loaded=lambda: _limit_cpu(CONVERSION_SECONDS))
        height, width, channels = decoded.pixels.shape
        image = {"height": height, "width": width, "channels": channels, "conversions": decoded.conversions}
        return {"image": image}, _FORMS[form](decoded.pixels)
    except Failure as failure:
        return {"fault": {"code": failure.code, "detail": failure.detail}}, b""
    finally:
        _limit_cpu(0)


def _limit_cpu(seconds: float) -> None:
    """End the process by SIGPROF after so much more CPU time; 0 means never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
