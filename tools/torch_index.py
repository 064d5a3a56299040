"""Install torch from an index of CPU builds, where PyPI's build would bring CUDA without a GPU to use it.

`make` and the worker's Dockerfile run it before they install the project, which then finds torch installed.
pip is shown only torch's page of that index: torch's dependencies come from the default index as always.

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
"""Timeout of an index or a driver that does not respond."""
ANSWER_SECONDS = 20
"""Timeout of the whole response of an index, including pip's own start."""
DOWNLOAD_SECONDS = 15
"""Timeout of a download that makes no progress."""

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
LIBRARY = (sys.executable, "-c", "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0) or print('GPU')")


def main() -> None:
    """Read the constraints file of the first argument; if the index fails, torch is left to pip."""
    version = read_pinned_version(Path(sys.argv[1]).read_text("utf-8"))
    if find_installed_version() == version:
        return
    index = choose_index(version)
    if index and not install(version, index):
        host = urlsplit(index).hostname
        print_line(f"{host} gave no torch {version}: the default index's is taken, with CUDA on Linux.")


def read_pinned_version(constraints: str) -> str:
    """The version of torch that the constraints name."""
    [version] = re.findall(r"^torch==(\S+)", constraints, re.MULTILINE)
    return str(version)


def find_installed_version() -> str | None:
    """The version of torch that is installed, without its build label."""
    try:
        return strip_build_label(importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return None


def strip_build_label(version: str) -> str:
    """A version without its build label: 2.13.0 for 2.13.0+cpu."""
    return version.partition("+")[0]


def choose_index(version: str) -> str:
    """TORCH_INDEX if set, even if empty; else the CPU index, if PyPI's build has CUDA but there is no GPU."""
    given = os.environ.get("TORCH_INDEX")
    if given is not None:
        return given
    return CPU_INDEX if has_cuda_by_default(version) and not has_nvidia_driver() else ""


def has_cuda_by_default(version: str) -> bool:
    """Whether pip would take PyPI's build for Linux. A build with a label is from an index of the user."""
    return sys.platform == "linux" and find_build(version) in (None, version)


def has_nvidia_driver() -> bool:
    """Whether there is an NVIDIA driver with a GPU. Containers may lack either nvidia-smi or the library."""
    commands = (("nvidia-smi", "-L"), LIBRARY)
    return any(read_output(command, SILENCE_SECONDS).startswith("GPU") for command in commands)


def read_output(command: tuple[str, ...], seconds: float) -> str:
    """What a command prints; empty if it does not exist or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def find_build(version: str, *source: str) -> str | None:
    """The build of this version that pip would take from a source; None if it finds none in time."""
    timeout = ("--timeout", str(SILENCE_SECONDS), "--retries", "0")
    command = (*PIP, "index", "versions", "torch", *timeout, *source)
    listed = re.search(r"^Available versions: (.+)$", read_output(command, ANSWER_SECONDS), re.MULTILINE)
    builds = listed[1].split(", ") if listed else []
    return next((build for build in builds if strip_build_label(build) == version), None)


def install(version: str, index: str) -> bool:
    """Install torch without its dependencies from this index; returns whether that succeeded."""
    page = ("--no-index", "--find-links", f"{index.rstrip('/')}/torch/")
    build = find_build(version, *page)
    if build is None:
        return False
    print_line(f"Installing torch {build} from {urlsplit(index).hostname} …")
    timeout = ("--timeout", str(DOWNLOAD_SECONDS), "--retries", "1")
    alone = ("--no-deps", "--only-binary", "torch", *timeout, *page)
    done = subprocess.run((*PIP, "install", "-qq", *alone, f"torch=={build}"), check=False)
    return done.returncode == 0


def print_line(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
