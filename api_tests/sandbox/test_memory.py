"""Out of memory: libraries report it in many ways, and it is never an error of the job."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from touchstone import memory
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


LIMITED_PROGRAM = """
import sys, numpy, torch
from touchstone.memory import is_out_of_memory, limit_memory
torch.ones(2).sum()
print(limit_memory(2**30, device=sys.argv[1]))
for allocate in (lambda: torch.empty(2**30), lambda: numpy.empty(2**30), lambda: bytearray(2**30)):
    try:
        allocate()
    except Exception as error:
        print(is_out_of_memory(error))
    else:
        print("allocated")
print(float(torch.ones(2**20).sum()))
"""


def run_limited(device: str) -> list[str]:
    """What became of allocations beyond the limit, and of one within it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_PROGRAM, device], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_allocation_beyond_the_limit_of_a_process_fails_as_lack_of_memory() -> None:
    means, *became, small = run_limited("cpu")
    assert means in ("cgroup", "data")
    assert became == ["True"] * 3
    assert float(small) == 2**20


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the cgroups, in which this process is in the group `jobs`."""
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_find_cgroup", lambda: "/jobs")
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def test_cgroup_of_a_process_has_its_limit_and_those_of_ended_ones_are_removed(cgroups: Path) -> None:
    (cgroups / "touchstone-1").mkdir()
    assert memory.limit_memory(2**33, device="cuda") == "cgroup"
    [own] = cgroups.iterdir()
    assert own.name == f"touchstone-{os.getpid()}"
    assert (own / "memory.max").read_text() == str(2**33)
    assert (own / "cgroup.procs").read_text() == str(os.getpid())


def test_cgroup_of_a_child_of_a_limited_process_is_beside_its_own(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cgroups / "touchstone-1").mkdir()
    (cgroups / "touchstone-1/cgroup.procs").touch()  # its process lives
    monkeypatch.setattr(memory, "_find_cgroup", lambda: "/jobs/touchstone-1")
    assert memory.limit_memory(2**33, device="cuda") == "cgroup"
    assert {group.name for group in cgroups.iterdir()} == {"touchstone-1", f"touchstone-{os.getpid()}"}


def test_without_a_cgroup_that_can_be_written_cuda_has_no_limit(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "write_text", refuse)
    assert memory.limit_memory(2**33, device="cuda") == "none"
    assert not list(cgroups.iterdir())
