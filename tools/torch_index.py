"""Install torch alone from an index of builds for the CPU, where PyPI's build would bring CUDA along in vain.

`make` and the worker's Dockerfile run it before they install the project, which then finds torch there.
The page of torch is all that pip is ever shown of that index: whatever else it may hold, torch's
dependencies come from the default index as before.

    python torch_index.py constraints.txt
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SILENCE_SECONDS = 5
"""After which an index that says nothing, or a driver, is taken for dead."""
ANSWER_SECONDS = 20
"""Within which the whole answer must come, however slowly it drips: pip's own start is part of it."""
DOWNLOAD_SECONDS = 15
"""After which a download that stands still is given up."""

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
LIBRARY = (sys.executable, "-c", "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0) or print('GPU')")


def main() -> None:
    """Read the constraints that the first argument names; what the index does not give is left to pip."""
    version = pinned(Path(sys.argv[1]).read_text("utf-8"))
    if installed() == version:
        return
    index = chosen_index(version)
    if index and not install(version, index):
        host = urlsplit(index).hostname
        say(f"{host} gave no torch {version}: the default index's is taken, with CUDA on Linux.")


def pinned(constraints: str) -> str:
    """The version of torch that the constraints name."""
    [version] = re.findall(r"^torch==(\S+)", constraints, re.MULTILINE)
    return str(version)


def installed() -> str | None:
    """The version of torch that is here, whatever it was built for."""
    try:
        return public(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return None


def public(version: str) -> str:
    """A version without the label of its build: 2.13.0 for 2.13.0+cpu."""
    return version.partition("+")[0]


def chosen_index(version: str) -> str:
    """TORCH_INDEX where it is set, be it to nothing; else the CPU's, where CUDA would come in vain."""
    given = os.environ.get("TORCH_INDEX")
    if given is not None:
        return given
    return CPU_INDEX if brings_cuda(version) and not driver_answers() else ""


def brings_cuda(version: str) -> bool:
    """Whether pip takes PyPI's build for Linux: one with a label is from a place that its user named."""
    return sys.platform == "linux" and offered(version) in (None, version)


def driver_answers() -> bool:
    """Whether there is an NVIDIA driver with a GPU. Containers may lack either of the two that can tell."""
    tellers = (("nvidia-smi", "-L"), LIBRARY)
    return any(told(teller, SILENCE_SECONDS).startswith("GPU") for teller in tellers)


def told(command: tuple[str, ...], seconds: float) -> str:
    """What a command prints; nothing if it is not there or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def offered(version: str, *source: str) -> str | None:
    """The build of this version that pip would take from there; None where it is told of none in time."""
    patience = ("--timeout", str(SILENCE_SECONDS), "--retries", "0")
    command = (*PIP, "index", "versions", "torch", *patience, *source)
    listed = re.search(r"^Available versions: (.+)$", told(command, ANSWER_SECONDS), re.MULTILINE)
    builds = listed[1].split(", ") if listed else []
    return next((build for build in builds if public(build) == version), None)


def install(version: str, index: str) -> bool:
    """Whether torch, without its dependencies, could be installed from this index."""
    page = ("--no-index", "--find-links", f"{index.rstrip('/')}/torch/")
    build = offered(version, *page)
    if build is None:
        return False
    say(f"Installing torch {build} from {urlsplit(index).hostname} …")
    patience = ("--timeout", str(DOWNLOAD_SECONDS), "--retries", "1")
    alone = ("--no-deps", "--only-binary", "torch", *patience, *page)
    done = subprocess.run((*PIP, "install", "-qq", *alone, f"torch=={build}"), check=False)
    return done.returncode == 0


def say(line: str) -> None:
    """Tell whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
