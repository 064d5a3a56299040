"""The trial of a user's model in a child process, which may crash, hang or exhaust its memory."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

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
from touchstone.registration.trial_child import TrialChild

MAX_LINE_BYTES = 2**16
MAX_LINES = 100
POLL_SECONDS = 0.1

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
        self._child: TrialChild | None = None
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
        start: Callable[[], TrialChild] = TrialChild,
    ) -> TrialResult:
        """Try the file, once the lock is acquired; `on_step` is called at each step of `STEPS`, and `start`
        for the process.

        The files are not read before that, because many large ones may wait.

        An operator that is not supported is refused before a process is started.

        Raises InvalidModel, UnsupportedOperator, ModelTooCostly, and ModelUnusable where the model is not at
        fault.
        """
        with self._wait_for_lock(lock), tempfile.TemporaryFile() as source:
            source.write(self._request.model_dump_json().encode() + b"\n")
            data = read()
            check_operators(self._request.manifest, data)
            source.write(read_examples())
            source.write(data)
            del data
            source.seek(0)
            with self._limit_time(start()) as child:
                child.send(source)
                last = self._read_messages(child, on_step)
            return self._conclude(last, child.returncode, child.errors)

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

    @contextmanager
    def _limit_time(self, child: TrialChild) -> Iterator[TrialChild]:
        """Limit the time of a child; neither it nor its descendants outlive the context."""
        timer = threading.Timer(self._request.seconds, self._request_stop, ["late"])
        timer.daemon = True
        try:
            timer.start()
            with self._lock:
                self._child = child
            if self._stop_reason:
                self._request_stop(self._stop_reason)
            yield child
        finally:
            timer.cancel()
            with self._lock:
                self._child = None
            child.close()

    def _request_stop(self, reason: StopReason) -> None:
        with self._lock:
            self._stop_reason = self._stop_reason or reason
            if self._child is not None:
                self._child.kill()

    def _read_messages(self, child: TrialChild, on_step: Callable[[int], object]) -> Message | None:
        """Read all messages; returns the last one that is not a step."""
        last: Message | None = None
        for line in _read_lines(child):
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


def _read_lines(child: TrialChild) -> Iterator[bytes]:
    for _ in range(MAX_LINES):
        line = child.output.readline(MAX_LINE_BYTES)
        if not line:
            return
        yield line
    raise InvalidModel(_PROTOCOL_VIOLATION)


def _to_failure(error: TrialError) -> Failure:
    kind = _FAILURES.get(error.code, InvalidModel)
    return kind(error.detail, field=error.field)
