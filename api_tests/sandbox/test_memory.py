"""Out of memory: libraries report it in many ways, and it is never an error of the job."""

import subprocess
import sys
from functools import cache

import pytest
import torch

from touchstone.errors import ModelUnusable
from touchstone.memory import is_out_of_memory, mentions_out_of_memory

ALLOCATIONS = (
    "torch.empty(2**28)",
    "bytearray(2**28)",
    "mmap.mmap(-1, 2**28)",
    "threading.Thread(target=print).start()",
    "convolve(torch.zeros(64, 8, 64, 64))",
    "zlib.decompress(zlib.compress(bytes(100)), bufsize=2**30)",
)
LOW_MEMORY_PROGRAM = """
import mmap, resource, sys, threading, zlib, torch
from touchstone.memory import is_out_of_memory
convolve = torch.nn.Conv2d(8, 8, 3)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
for allocation in sys.argv[1:]:
    raised = None
    resource.setrlimit(resource.RLIMIT_AS, (2**20, hard))
    try:
        exec(allocation)
    except BaseException as error:
        raised = error
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print("recognized" if is_out_of_memory(raised) else repr(raised))
"""


@cache
def run_allocations() -> dict[str, str]:
    """What became of each allocation, in a process whose memory limit is reached."""
    done = subprocess.run(
        [sys.executable, "-c", LOW_MEMORY_PROGRAM, *ALLOCATIONS], capture_output=True, text=True, check=True
    )
    return dict(zip(ALLOCATIONS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_failed_allocation_is_recognized_as_lack_of_memory(allocation: str) -> None:
    assert run_allocations()[allocation] == "recognized"


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
