"""The trial of a user's model in a child process, which may crash, hang or exhaust its memory."""

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
    DeadlineExceeded,
    Failure,
    InvalidModel,
    JobCanceled,
    ModelTooCostly,
    ModelUnusable,
    UnsupportedOperator,
)
from touchstone.ledger.records import ExamplesRef
from touchstone.logs import get_logger
from touchstone.memory import mentions_out_of_memory
from touchstone.models.manifest import Manifest
from touchstone.registration.messages import STEPS, Message, TrialError, TrialRequest, TrialResult
from touchstone.registration.precheck import check_operators
from touchstone.sandbox import confinement

MODULE = "touchstone.registration.trial_process"
MAX_LINE_BYTES = 2**16
MAX_LINES = 100
POLL_SECONDS = 0.1
STDERR_TAIL_BYTES = 2000

StopReason = Literal["canceled", "expired", "late"]

_FAILURES: dict[str, type[Failure]] = {
    kind.code: kind for kind in (InvalidModel, UnsupportedOperator, ModelTooCostly, ModelUnusable)
}
_PROTOCOL_VIOLATION = "the process that tried the model wrote an invalid message"
_TIME_SIGNALS = (signal.SIGALRM, signal.SIGXCPU)

_log = get_logger("trial")


class Lock(Protocol):
    """Admits a limited number of holders at once, as a semaphore does."""

    def acquire(self, *, timeout: float) -> bool:
        """Wait up to so many seconds; whether it was acquired."""

    def release(self) -> None:
        """Admit the next one."""


class Trial:
    """One model in one child process. `cancel` and `expire` may be called from any thread, at any time."""

    def __init__(
        self, manifest: Manifest, *, seconds: float, memory: int, examples: ExamplesRef | None = None
    ) -> None:
        self._request = TrialRequest(manifest=manifest, seconds=seconds, memory=memory, examples=examples)
        self._stop_reason: StopReason | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._step: int | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """End it at once; `run` then raises JobCanceled."""
        self._request_stop("canceled")

    def expire(self) -> None:
        """End it at once because its deadline has passed; `run` then raises DeadlineExceeded."""
        self._request_stop("expired")

    def run(
        self,
        read: Callable[[], bytes],
        on_step: Callable[[int], object],
        lock: Lock,
        *,
        read_examples: Callable[[], bytes] = bytes,
    ) -> TrialResult:
        """Try the file, once the lock is acquired; `on_step` is called at each step of `STEPS`.

        The files are not read before that, because many large ones may wait.

        An operator that is not supported is refused before a process is started.

        Raises InvalidModel, UnsupportedOperator, ModelTooCostly, and ModelUnusable where the model is not at
        fault.
        """
        with self._wait_for_lock(lock), _temporary_file() as source, _temporary_file() as errors:
            source.write(self._request.model_dump_json().encode() + b"\n")
            data = read()
            check_operators(self._request.manifest, data)
            source.write(read_examples())
            source.write(data)
            del data
            source.seek(0)
            with self._limit_time(self._start(source, errors)) as process:
                last = self._read_messages(process, on_step)
            errors.seek(max(0, errors.tell() - STDERR_TAIL_BYTES))
            return self._conclude(last, process.returncode, errors.read().decode("utf-8", errors="replace"))

    @contextmanager
    def _wait_for_lock(self, lock: Lock) -> Iterator[None]:
        """Wait for the lock, until the trial is canceled or expires."""
        while not lock.acquire(timeout=POLL_SECONDS):
            self._check_stopped()
        try:
            self._check_stopped()
            yield
        finally:
            lock.release()

    def _check_stopped(self) -> None:
        if self._stop_reason == "canceled":
            raise JobCanceled("the job was canceled")
        if self._stop_reason == "expired":
            raise DeadlineExceeded("the job ran longer than its deadline allowed")
        if self._stop_reason == "late":
            seconds = self._request.seconds
            raise ModelTooCostly(f"trying the model took longer than {seconds:g} s{self._format_step()}")

    def _format_step(self) -> str:
        return "" if self._step is None else f", at the step {STEPS[self._step]!r}"

    def _start(self, source: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        # -P: nothing is imported from its working directory.
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
    def _limit_time(self, process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """Limit the time of a process; neither it nor its descendants outlive the context."""
        timer = threading.Timer(self._request.seconds, self._request_stop, ["late"])
        timer.daemon = True
        try:
            timer.start()
            with self._lock:
                self._process = process
            if self._stop_reason:
                self._request_stop(self._stop_reason)
            yield process
        finally:
            timer.cancel()
            with self._lock:
                _kill(process)
                self._process = None
            process.wait()
            if process.stdout:
                process.stdout.close()

    def _request_stop(self, reason: StopReason) -> None:
        with self._lock:
            self._stop_reason = self._stop_reason or reason
            if self._process is not None:
                _kill(self._process)

    def _read_messages(
        self, process: subprocess.Popen[bytes], on_step: Callable[[int], object]
    ) -> Message | None:
        """Read all messages; returns the last one that is not a step."""
        last: Message | None = None
        for line in _read_lines(process):
            try:
                message = Message.model_validate_json(line)
            except ValidationError:
                raise InvalidModel(_PROTOCOL_VIOLATION) from None
            if message.started:
                self._step = message.started.step
                on_step(message.started.step)
            else:
                last = message
        return last

    def _conclude(self, last: Message | None, code: int, errors: str) -> TrialResult:
        self._check_stopped()
        if last and last.result:
            return last.result
        if last and last.error:
            raise _to_failure(last.error)
        _log.warning("a model's trial broke", model=self._request.manifest.id, code=code, errors=errors)
        if self._step is None:
            raise ModelUnusable("the process that tries models did not start; see the worker's log")
        raise self._crash_failure(code, errors)

    def _crash_failure(self, code: int, errors: str) -> Failure:
        if -code in _TIME_SIGNALS:
            return ModelTooCostly(f"trying the model took too long{self._format_step()}")
        if -code == signal.SIGKILL or mentions_out_of_memory(errors):
            limit = self._request.memory
            return ModelTooCostly(
                f"trying the model took more memory than is available, or than {limit:,} bytes"
                f"{self._format_step()}"
            )
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return InvalidModel(f"the process that tried the model ended with {how}{self._format_step()}")


def _environment() -> dict[str, str]:
    """The environment of the child; half of the processors are left to the jobs."""
    return confinement.environment() | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was not waited for yet, with all its descendants."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None  # noqa: S101 - stdout=PIPE
    for _ in range(MAX_LINES):
        line = process.stdout.readline(MAX_LINE_BYTES)
        if not line:
            return
        yield line
    raise InvalidModel(_PROTOCOL_VIOLATION)


def _to_failure(error: TrialError) -> Failure:
    kind = _FAILURES.get(error.code, InvalidModel)
    return kind(error.detail, field=error.field)


@contextmanager
def _temporary_file() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file
