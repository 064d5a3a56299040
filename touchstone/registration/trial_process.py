"""`python -m touchstone.registration.trial_process`: try one model in a process that it may crash.

Standard input is a socket through which an open file comes: a line of JSON, the examples if there are any,
and the model's file. A line of JSON is written for each step and for the result. Everything is imported
before the limits are set, and they are set before any byte of the files is read. A process that waits for its
model has imported everything already, and ends with the process that started it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.nn import functional

from touchstone.errors import Failure, InvalidModel, ModelTooCostly
from touchstone.memory import is_out_of_memory
from touchstone.models.manifest import ONNX
from touchstone.registration.examination import probe_model
from touchstone.registration.example_accuracy import LabelledPixels
from touchstone.registration.examples import unpack_examples
from touchstone.registration.messages import STEPS, Message, StepStarted, TrialError, TrialRequest
from touchstone.sandbox.confinement import confine

MAX_WRITTEN_BYTES = 2**20
_GRACE_SECONDS = 5
_MAX_LINE_BYTES = 2**26


def main() -> None:
    """Try the model that comes through standard input."""
    _warm_up()
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        if not select.select([connection], [], [], 0)[0]:
            _import_ahead()
        source = _receive_file(connection)
    if source is None:
        return
    request = TrialRequest.model_validate_json(source.readline(_MAX_LINE_BYTES))
    if request.manifest.architecture == ONNX:
        _leave_out_compiler()
    _confine(request)
    _send(Message(started=StepStarted(step=0)))
    _send(_run_trial(request, source))


def _receive_file(connection: socket.socket) -> BinaryIO | None:
    """The file to read; None if the other side has ended."""
    _, files, _, _ = socket.recv_fds(connection, 1, 1)
    return os.fdopen(files[0], "rb") if files else None


def _run_trial(request: TrialRequest, source: BinaryIO) -> Message:
    def report_step(step: str) -> None:
        _send(Message(started=StepStarted(step=STEPS.index(step))))

    try:
        examples = _read_examples(request, source)
        return Message(result=probe_model(request.manifest, source.read(), report_step, examples))
    except Exception as error:  # noqa: BLE001 - any error that a user's file leads to is an error of that file
        return _error_message(_to_failure(error, request))


def _read_examples(request: TrialRequest, source: BinaryIO) -> LabelledPixels | None:
    if request.examples is None:
        return None
    return LabelledPixels(unpack_examples(source.read(request.examples.size)), request.examples.labels)


def _to_failure(error: Exception, request: TrialRequest) -> Failure:
    if is_out_of_memory(error):
        return ModelTooCostly(f"trying the model took more than {request.memory:,} bytes of memory")
    if isinstance(error, Failure):
        return error
    return InvalidModel(f"the network cannot be run: {type(error).__name__}: {error}"[:500])


def _error_message(failure: Failure) -> Message:
    return Message(error=TrialError(code=failure.code, detail=failure.detail[:2000], field=failure.field))


def _send(message: Message) -> None:
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def _warm_up() -> None:
    """Have PyTorch start its threads and allocate what it needs, so that the model is not charged for it."""
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)
    y = functional.conv2d(x, torch.zeros(8, 3, 3, 3)).flatten(1)
    torch.autograd.grad(nn.Linear(y.shape[1], 8)(y).sum(), x)


def _import_ahead() -> None:
    """Import what PyTorch's shape inference imports at its first use, while there is nothing else to do."""
    import sympy  # noqa: F401, PLC0415


def _leave_out_compiler() -> None:
    """Let PyTorch's shape inference do without its compiler, which it imports only to keep it out of its way.

    That import takes as long as that of PyTorch itself. Nothing that an ONNX file leads to compiles anything.
    """
    compiler: Any = ModuleType("torch._dynamo")
    compiler.disable = lambda function, *_, **__: function
    sys.modules["torch._dynamo"] = compiler


def _confine(request: TrialRequest) -> None:
    """Set the limits of a trial; the process ends even if its parent dies."""
    seconds = int(request.seconds) + _GRACE_SECONDS
    signal.alarm(seconds)
    confine(
        memory=request.memory,
        max_file_bytes=MAX_WRITTEN_BYTES,
        processor_seconds=seconds * (os.cpu_count() or 1),
    )


if __name__ == "__main__":
    main()
