"""Trying a stranger's model in a process of its own, which may crash, hang or eat memory without harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Literal, Protocol

from pydantic import ValidationError

from touchstone.errors import (
    Canceled,
    DeadlineExceeded,
    Failure,
    InvalidModel,
    ModelTooCostly,
    ModelUnusable,
    UnsupportedOperator,
)
from touchstone.logs import get_logger
from touchstone.memory import tells_of_lack
from touchstone.models.manifest import Manifest
from touchstone.registration.messages import STEPS, Fault, Findings, Request, Word
from touchstone.sandbox import confinement

MODULE = "touchstone.registration.trial_process"
LONGEST_LINE = 2**16
MOST_LINES = 100
LOOK_SECONDS = 0.1
LAST_WORDS = 2000

Reason = Literal["canceled", "expired", "late"]

_FAULTS: dict[str, type[Failure]] = {
    kind.code: kind for kind in (InvalidModel, UnsupportedOperator, ModelTooCostly, ModelUnusable)
}
_UNHEARD_OF = "the process that tried the model wrote what it never should"
_COSTLY = (signal.SIGALRM, signal.SIGXCPU)

_log = get_logger("trial")


class Gate(Protocol):
    """What lets in only so many at once, as a semaphore does."""

    def acquire(self, *, timeout: float) -> bool:
        """Whether one may go in, after so many seconds at most."""

    def release(self) -> None:
        """Let the next one in."""


class Trial:
    """One model in one child process. `cancel` and `expire` may be called from any thread, at any time."""

    def __init__(self, card: Manifest, *, seconds: float, memory: int) -> None:
        self._request = Request(card=card, seconds=seconds, memory=memory)
        self._reason: Reason | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._step: int | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """End it at once; `run` then raises Canceled."""
        self._end("canceled")

    def expire(self) -> None:
        """End it at once because its time is over; `run` then raises DeadlineExceeded."""
        self._end("expired")

    def run(self, read: Callable[[], bytes], begun: Callable[[int], object], gate: Gate) -> Findings:
        """Try the file, once the gate lets it; `begun` is told of each step of `STEPS`.

        Nothing is read while others are tried: many large files may wait.

        Raises InvalidModel, UnsupportedOperator, ModelTooCostly, and ModelUnusable where the fault is ours.
        """
        with self._turn(gate), _unlinked() as source, _unlinked() as errors:
            source.write(self._request.model_dump_json().encode() + b"\n")
            source.write(read())
            source.seek(0)
            with self._timed(self._start(source, errors)) as process:
                last = self._heard(process, begun)
            errors.seek(max(0, errors.tell() - LAST_WORDS))
            return self._conclude(last, process.returncode, errors.read().decode("utf-8", errors="replace"))

    @contextmanager
    def _turn(self, gate: Gate) -> Iterator[None]:
        """Wait for the gate, but no longer than anybody wants the result."""
        while not gate.acquire(timeout=LOOK_SECONDS):
            self._check()
        try:
            self._check()
            yield
        finally:
            gate.release()

    def _check(self) -> None:
        if self._reason == "canceled":
            raise Canceled("the job was canceled")
        if self._reason == "expired":
            raise DeadlineExceeded("the job ran longer than its deadline allowed")
        if self._reason == "late":
            seconds = self._request.seconds
            raise ModelTooCostly(f"trying the model took longer than {seconds:g} s{self._where()}")

    def _where(self) -> str:
        return "" if self._step is None else f", at the step {STEPS[self._step]!r}"

    def _start(self, source: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        # -P: nothing is imported from the folder that it starts in.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", MODULE],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )

    @contextmanager
    def _timed(self, process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """Keep a process for no longer than its time; neither it nor its offspring outlives the context."""
        timer = threading.Timer(self._request.seconds, self._end, ["late"])
        timer.daemon = True
        try:
            timer.start()
            with self._lock:
                self._process = process
            if self._reason:
                self._end(self._reason)
            yield process
        finally:
            timer.cancel()
            with self._lock:
                _kill(process)
                self._process = None
            process.wait()
            if process.stdout:
                process.stdout.close()

    def _end(self, reason: Reason) -> None:
        with self._lock:
            self._reason = self._reason or reason
            if self._process is not None:
                _kill(self._process)

    def _heard(self, process: subprocess.Popen[bytes], begun: Callable[[int], object]) -> Word | None:
        """Listen to the end; the last word that is not a step."""
        last: Word | None = None
        for line in _lines(process):
            try:
                word = Word.model_validate_json(line)
            except ValidationError:
                raise InvalidModel(_UNHEARD_OF) from None
            if word.begun:
                self._step = word.begun.step
                begun(word.begun.step)
            else:
                last = word
        return last

    def _conclude(self, last: Word | None, code: int, errors: str) -> Findings:
        self._check()
        if last and last.findings:
            return last.findings
        if last and last.fault:
            raise _failure(last.fault)
        _log.warning("a model's trial broke", model=self._request.card.id, code=code, errors=errors)
        if self._step is None:
            raise ModelUnusable("the process that tries models did not start; the worker's log says more")
        raise self._crash(code, errors)

    def _crash(self, code: int, errors: str) -> Failure:
        if -code in _COSTLY:
            return ModelTooCostly(f"trying the model took too long{self._where()}")
        if -code == signal.SIGKILL or tells_of_lack(errors):
            limit = self._request.memory
            return ModelTooCostly(
                f"trying the model took more memory than there is, or than {limit:,} bytes{self._where()}"
            )
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return InvalidModel(f"the process that tried the model ended with {how}{self._where()}")


def _environment() -> dict[str, str]:
    """Half of the processors stay with the jobs."""
    return confinement.environment() | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was not waited for yet, with all that it may have started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    for _ in range(MOST_LINES):
        line = process.stdout.readline(LONGEST_LINE)
        if not line:
            return
        yield line
    raise InvalidModel(_UNHEARD_OF)


def _failure(fault: Fault) -> Failure:
    kind = _FAULTS.get(fault.code, InvalidModel)
    return kind(fault.detail, field=fault.field)


@contextmanager
def _unlinked() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file
