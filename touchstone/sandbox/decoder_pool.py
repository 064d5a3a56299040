"""Decoding uploads in child processes: a file that crashes or exhausts a decoder affects no other upload."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from touchstone.errors import Failure, ImageTooLarge, InvalidImage, NotReady
from touchstone.images import MAX_PIXELS, MAX_SIDE, MIN_SIDE, Pixels
from touchstone.ledger.records import ImageRef
from touchstone.logs import get_logger
from touchstone.sandbox.confinement import environment
from touchstone.sandbox.decoder import CPU_SECONDS, PNG, RAW, READY
from touchstone.sandbox.turns import Turns
from touchstone.storage.blobs import digest_of

MODULE = "touchstone.sandbox.decoder"
START_SECONDS = 60.0
TIMEOUT_SECONDS = 60.0
"""Wall-clock time for one upload; the process itself limits its CPU time."""

MAX_TRIES = 2
RESERVE = 1
"""Further decoders, for tenants whose uploads are in none."""

_MAX_HEAD = 2**16
_MAX_CONTENT = 4 * MAX_PIXELS

_FAULTS: dict[str, type[Failure]] = {kind.code: kind for kind in (InvalidImage, ImageTooLarge)}

_log = get_logger("decoding")


class _Message(BaseModel):
    """Strict about its fields: what a decoder writes is checked like any user's input."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _ImageHead(_Message):
    height: int = Field(ge=MIN_SIDE, le=MAX_SIDE)
    width: int = Field(ge=MIN_SIDE, le=MAX_SIDE)
    channels: Literal[1, 3]
    conversions: tuple[str, ...]

    @property
    def values(self) -> int:
        return self.height * self.width * self.channels


class _Fault(_Message):
    code: str
    detail: str


class _Answer(_Message):
    image: _ImageHead | None = None
    fault: _Fault | None = None


class _DecoderDiedError(Exception):
    """A decoder has ended or is in an unknown state."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a decoder ended with code {code}")
        self.code = code


class DecoderPool:
    """At most `count` processes, started when they are needed, and one more where several tenants need them;
    any thread may call, and waits for its tenant's turn.

    `deaths` counts the processes that ended by a file or for any other reason.
    """

    def __init__(self, count: int) -> None:
        self.deaths = 0
        self._turns = Turns(count, reserve=RESERVE)
        self._idle: list[_Decoder] = []

    def of(self, tenant: str) -> Decoders:
        """The decoders for uploads of a tenant, who is charged with the time."""
        return Decoders(self, tenant)

    def stop(self) -> None:
        """End the processes that are idle; the others end when this process does."""
        while self._idle:
            self._idle.pop().kill()

    def decode(self, tenant: str, form: bytes, upload: bytes) -> tuple[_ImageHead, bytes]:
        """Decode an upload and encode it again in one of the forms of `decoder`. Raises InvalidImage,
        ImageTooLarge and NotReady.
        """
        for _ in range(MAX_TRIES):  # what ended the decoder may have nothing to do with the file
            try:
                with self._turns.hold(tenant):
                    return self._decode_once(form, upload)
            except _DecoderDiedError as death:
                self.deaths += 1
                _log.warning("a decoder died", code=death.code, tenant=tenant)
                if -death.code == signal.SIGPROF:
                    raise InvalidImage(
                        f"image: decoding it takes more than {CPU_SECONDS} s of processor time; save it "
                        "again in a plainer form, such as PNG",
                        field="image",
                    ) from None
        raise InvalidImage("image: no PNG, JPEG or WebP file that can be decoded", field="image")

    def _decode_once(self, form: bytes, upload: bytes) -> tuple[_ImageHead, bytes]:
        decoder = self._take_decoder()
        try:
            answer = decoder.decode(form, upload)
        except Failure:
            self._idle.append(decoder)
            raise
        except BaseException:  # the next caller would read the unread answer
            decoder.kill()
            raise
        self._idle.append(decoder)
        return answer

    def _take_decoder(self) -> _Decoder:
        try:
            return self._idle.pop()
        except IndexError:
            return _Decoder()


@dataclass(frozen=True)
class Decoders:
    """The decoders as one tenant uses them."""

    pool: DecoderPool
    tenant: str

    def canonical(self, upload: bytes) -> tuple[bytes, ImageRef]:
        """As `evaluation.local.canonicalize`."""
        image, png = self.pool.decode(self.tenant, PNG, upload)
        return png, ImageRef(digest=digest_of(png), **image.model_dump())

    def pixels(self, upload: bytes) -> Pixels:
        """As `images.decode` gives them."""
        image, content = self.pool.decode(self.tenant, RAW, upload)
        return np.frombuffer(content, np.uint8).reshape(image.height, image.width, image.channels)


class _Decoder:
    """One process."""

    def __init__(self) -> None:
        self._connection, remote_end = Pipe()
        with remote_end:
            # -P: nothing is imported from its working directory.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", MODULE],
                stdin=remote_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        try:
            self._receive(len(READY), START_SECONDS)
        except (EOFError, OSError):
            self.kill()
            raise NotReady(
                "images cannot be decoded at the moment: the decoder process does not start"
            ) from None

    def decode(self, form: bytes, upload: bytes) -> tuple[_ImageHead, bytes]:
        """Have an upload decoded; raises InvalidImage, ImageTooLarge and _DecoderDiedError."""
        try:
            self._connection.send_bytes(form + upload)
            answer = _Answer.model_validate_json(self._receive(_MAX_HEAD, TIMEOUT_SECONDS))
            content = self._receive(_MAX_CONTENT, TIMEOUT_SECONDS)
        except (EOFError, OSError, ValidationError):
            raise _DecoderDiedError(self.kill()) from None
        if answer.image:
            if form == RAW and len(content) != answer.image.values:
                raise _DecoderDiedError(self.kill())
            return answer.image, content
        fault = answer.fault or _Fault(code=InvalidImage.code, detail="image: it cannot be decoded")
        raise _FAULTS.get(fault.code, InvalidImage)(fault.detail, field="image")

    def _receive(self, max_bytes: int, seconds: float) -> bytes:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv_bytes(max_bytes)

    def kill(self) -> int:
        """Kill the process unless it has ended; returns its exit code."""
        self._process.kill()
        self._connection.close()
        return self._process.wait()
