"""A decoder that some uploads crash, hold up, or make send nonsense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from touchstone.sandbox import decoder_pool
from touchstone.sandbox.confinement import environment

HOSTILE = """
import os, signal, time
from json import dumps
import numpy as np
from multiprocessing.connection import Connection
from touchstone.sandbox import decoder, decoder_pool
from touchstone.errors import InvalidImage
from touchstone.images import DecodedImage

def decode(upload, **options):
    if upload == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while upload == b"spin":
        pass
    while upload == b"sleep":
        time.sleep(1)
    if upload == b"timer":
        left = lambda: str(signal.getitimer(signal.ITIMER_PROF)[0])
        decoder.json.dumps = lambda _: dumps({"fault": {"code": "", "detail": left()}})
    if upload == b"convert":
        options["on_loaded"]()
        raise InvalidImage(str(signal.getitimer(signal.ITIMER_PROF)[0]))
    if upload == b"pause":
        send = Connection.send_bytes
        Connection.send_bytes = lambda line, data: send(line, data) if data else time.sleep(600)
        raise InvalidImage("none")
    if upload == b"boast":
        return DecodedImage(np.zeros((8, 8, 1), "u1"), ("x" * 2**16,))
    if upload == b"giant":
        return DecodedImage(np.zeros((4097, 8, 1), "u1"), ())
    if upload == b"short":
        decoder._FORMS[decoder.RAW] = lambda pixels: bytes(63)
    if upload == b"flood":
        decoder._FORMS[decoder.PNG] = lambda pixels: bytes(decoder_pool._MAX_CONTENT + 1)
    if upload in (b"short", b"flood"):
        return DecodedImage(np.zeros((8, 8, 1), "u1"), ())
    bytearray(2 * decoder.MEMORY if upload == b"eat" else 1)
    return decode_really(upload, **options)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
decode_really, decoder.decode, decoder.CPU_SECONDS = decoder.decode, decode, 0.2
decoder.main()
"""


def install_hostile_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every decoder that is started run this module, which it finds in the folder."""
    (folder / "hostile.py").write_text(HOSTILE)
    path = os.pathsep.join([str(folder), environment()["PYTHONPATH"]])
    monkeypatch.setattr(decoder_pool, "MODULE", "hostile")
    monkeypatch.setattr(decoder_pool, "environment", lambda: {**environment(), "PYTHONPATH": path})
