"""Want of memory is told by many in many ways, and is none of the job's faults."""

import subprocess
import sys

import pytest
import torch

from touchstone.errors import ModelUnusable
from touchstone.memory import is_out_of_memory, mentions_out_of_memory

LOW_MEMORY_PROGRAM = """
import resource, threading, torch, {more}
convolve = torch.nn.Conv2d(8, 8, 3)
held = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (2**20, held[1]))
try:
    {what}
except BaseException as raised:
    resource.setrlimit(resource.RLIMIT_AS, held)
    from touchstone.memory import lacks_memory
    assert lacks_memory(raised), repr(raised)
    print("told")
"""


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("torch.empty(2**28)", "os"),
        ("bytearray(2**28)", "os"),
        ("mmap.mmap(-1, 2**28)", "mmap"),
        ("threading.Thread(target=print).start()", "os"),
        ("convolve(torch.zeros(64, 8, 64, 64))", "os"),
        ("zlib.decompress(zlib.compress(bytes(100)), bufsize=2**30)", "zlib"),
    ],
)
def test_failed_allocation_is_recognized_as_lack_of_memory(what: str, more: str) -> None:
    """In a process that may have no more, whatever way each asks for it."""
    code = LOW_MEMORY_PROGRAM.format(what=what, more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "told\n", done.stderr


def raise_unusable() -> None:
    try:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    except RuntimeError:
        raise ModelUnusable("digits: the weights do not fit") from None


def test_error_raised_while_handling_lack_of_memory_counts_as_such() -> None:
    with pytest.raises(ModelUnusable) as raised:
        raise_unusable()
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("the memory of it"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_other_errors_are_not_lack_of_memory(error: Exception | None) -> None:
    assert not is_out_of_memory(error)


def test_cuda_and_cpp_out_of_memory_errors_are_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert mentions_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
