"""`python -m touchstone.registration.trial_process`: try one model in a process that may die of it.

Standard input holds a line of JSON and then the file; a line of JSON goes out for each step and for what came
of it. Everything is imported before the limits are set, and they are set before a byte of the file is read.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import BinaryIO

import torch
from torch import nn
from torch.nn import functional

from touchstone.errors import Failure, InvalidModel, ModelTooCostly
from touchstone.memory import lacks_memory
from touchstone.registration.examination import examine
from touchstone.registration.messages import STEPS, Begun, Fault, Request, Word
from touchstone.sandbox.confinement import confine

WRITTEN_BYTES = 2**20
_GRACE_SECONDS = 5
_LONGEST_LINE = 2**26


def main() -> None:
    """Try the model on standard input."""
    source = sys.stdin.buffer
    request = Request.model_validate_json(source.readline(_LONGEST_LINE))
    _warm_up()
    _confine(request)
    _say(Word(begun=Begun(step=0)))
    _say(_tried(request, source))


def _tried(request: Request, source: BinaryIO) -> Word:
    def begin(step: str) -> None:
        _say(Word(begun=Begun(step=STEPS.index(step))))

    try:
        return Word(findings=examine(request.card, source.read(), begin))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's file leads to is a fault of that file
        return _fault(_failure(error, request))


def _failure(error: Exception, request: Request) -> Failure:
    if lacks_memory(error):
        return ModelTooCostly(f"trying the model took more than {request.memory:,} bytes of memory")
    if isinstance(error, Failure):
        return error
    return InvalidModel(f"the network cannot be run: {type(error).__name__}: {error}"[:500])


def _fault(failure: Failure) -> Word:
    return Word(fault=Fault(code=failure.code, detail=failure.detail[:2000], field=failure.field))


def _say(word: Word) -> None:
    sys.stdout.write(word.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()


def _warm_up() -> None:
    """Have PyTorch start its threads and reserve what it needs, which is none of the model's."""
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)
    y = functional.conv2d(x, torch.zeros(8, 3, 3, 3)).flatten(1)
    torch.autograd.grad(nn.Linear(y.shape[1], 8)(y).sum(), x)


def _confine(request: Request) -> None:
    """Set the limits of a trial; the process ends even where nobody is left to end it."""
    seconds = int(request.seconds) + _GRACE_SECONDS
    signal.alarm(seconds)
    confine(
        memory=request.memory,
        written=WRITTEN_BYTES,
        processor_seconds=seconds * (os.cpu_count() or 1),
    )


if __name__ == "__main__":
    main()
