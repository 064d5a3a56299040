"""Installing torch: alone from the CPU index, or from the default index if that one fails."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from api_tests.support.package_index import CONSTRAINTS, FILELOCK, VERSION, Index, run_index, wheel
from api_tests.support.pip_environment import (
    SECONDS,
    TOOL,
    Place,
    environment,
    make_environment,
    run_preloaded_place,
)
from api_tests.support.ports import reserve_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/worker.Dockerfile"
CPU = f"{VERSION}+cpu"
CPU_ALONE = {"torch": CPU, "filelock": FILELOCK}
"""The packages if the CPU index works: torch from there, and its dependency."""
CUDA_TOO = {"torch": VERSION, "filelock": FILELOCK, "nvidia-cublas": "13"}
"""The packages if torch comes from the default index."""
CPU_WHEEL = wheel("torch", CPU, "filelock")
# One version newer than the constraints, and one of exactly their version.
FOREIGN = (wheel("filelock", "99"), wheel("filelock", FILELOCK, "nvidia-cublas"))

BUILD = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
"""The pyproject.toml of a project that is built by its own module."""


@pytest.fixture
def index() -> Iterator[Index]:
    with run_index() as index:
        yield index


@pytest.fixture(scope="module")
def preloaded_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One virtual environment for all tests of this module."""
    with run_preloaded_place(tmp_path_factory.mktemp("install")) as place:
        yield place


@pytest.fixture
def place(preloaded_place: Place, index: Index) -> Iterator[Place]:
    """That environment, empty, with the index of this test."""
    yield replace(preloaded_place, environment=environment(index, preloaded_place.folder))
    preloaded_place.clear()


def test_only_torch_is_installed_from_the_cpu_index(index: Index, place: Place) -> None:
    """Other packages are there, too, on their own pages and on torch's; none is installed or requested."""
    page = "/cpu/torch/"
    index.put(page, CPU_WHEEL, wheel("torch", "99+cpu"), *FOREIGN)
    index.put("/cpu/filelock/", *FOREIGN)
    output = place.run_tool(TORCH_INDEX=index.cpu)
    assert f"Installing torch {CPU} from 127.0.0.1" in output
    assert place.packages() == {"torch": CPU}
    place.install()
    assert place.packages() == CPU_ALONE
    assert set(index.requests_to("cpu")) == {page, page + CPU_WHEEL[0]}
    assert f"/default/filelock/{wheel('filelock', FILELOCK)[0]}" in index.requested


def hang(index: Index) -> None:
    index.hanging.add("/cpu/torch/")


def send_slowly(index: Index) -> None:
    index.slow.add("/cpu/torch/")


def hang_in_the_download(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    index.hanging.add(f"/cpu/torch/{CPU_WHEEL[0]}")


def lose_the_wheel(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    del index.files[f"/cpu/torch/{CPU_WHEEL[0]}"]


def lack_the_page(_index: Index) -> None:
    """The page of torch is a 404."""


def list_nothing(index: Index) -> None:
    index.put("/cpu/torch/")


def list_other_versions(index: Index) -> None:
    index.put("/cpu/torch/", wheel("torch", "2.10.0+cpu"), wheel("torch", "99+cpu"))


def list_another_platform(index: Index) -> None:
    index.put("/cpu/torch/", wheel("torch", CPU, tag="py3-none-win_amd64"))


def list_another_python(index: Index) -> None:
    index.put("/cpu/torch/", wheel("torch", CPU, tag="cp27-cp27mu-linux_x86_64"))


def list_another_name(index: Index) -> None:
    index.put("/cpu/torch/", wheel("torchx", CPU), *FOREIGN)


def hold_another_name(index: Index) -> None:
    """A file named torch contains another package."""
    index.put("/cpu/torch/", (CPU_WHEEL[0], wheel("torchx", CPU)[1]))


def damage(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL, digest=hashlib.sha256(b"another").hexdigest())


def offer_sources(index: Index) -> None:
    """Sources could be built; but a build may download anything, and needs a compiler."""
    name, built = CPU_WHEEL
    backend = (
        "from pathlib import Path\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        f"    Path(folder, {name!r}).write_bytes({built!r})\n"
        f"    return {name!r}\n"
    )
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for file, text in (("pyproject.toml", BUILD), ("backend.py", backend)):
            member = tarfile.TarInfo(f"torch-{CPU}/{file}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    index.put("/cpu/torch/", (f"torch-{CPU}.tar.gz", data.getvalue()))


WAITING: list[Callable[[Index], None]] = [hang, send_slowly, hang_in_the_download]
FAILING: list[Callable[[Index], None]] = [
    *WAITING,
    lose_the_wheel,
    lack_the_page,
    list_nothing,
    list_other_versions,
    list_another_platform,
    list_another_python,
    list_another_name,
    hold_another_name,
    damage,
    offer_sources,
]
SHORT_TIMEOUTS = "tool.SILENCE_SECONDS = tool.DOWNLOAD_SECONDS = 1; tool.ANSWER_SECONDS = 4"


@pytest.mark.parametrize("fail", FAILING)
def test_failing_cpu_index_is_skipped(index: Index, place: Place, fail: Callable[[Index], None]) -> None:
    fail(index)
    output = place.run_changed_tool(SHORT_TIMEOUTS if fail in WAITING else "", TORCH_INDEX=index.cpu)
    assert f"127.0.0.1 gave no torch {VERSION}" in output
    assert index.requests_to("cpu")
    assert max(map(index.requested.count, index.requested)) <= 2, "a request is tried at most twice"
    assert place.packages() == {}


def test_unreachable_cpu_index_is_skipped(place: Place) -> None:
    with reserve_port() as port:
        output = place.run_changed_tool("", TORCH_INDEX=f"http://127.0.0.1:{port}")
    assert f"127.0.0.1 gave no torch {VERSION}" in output
    assert place.packages() == {}


def test_password_of_the_index_is_not_printed(index: Index, place: Place) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    output = place.run_changed_tool("", TORCH_INDEX=index.cpu.replace("//", "//name:secret@"))
    assert place.packages() == {"torch": CPU}
    assert "secret" not in output


@pytest.fixture
def no_driver(index: Index) -> str:
    """Changes to the tool: the CPU index is that of the test, and there is no driver."""
    index.put("/cpu/torch/", CPU_WHEEL)
    return f"tool.CPU_INDEX = {index.cpu!r}; tool.has_nvidia_driver = lambda: False; sys.platform = 'linux'"


def test_cpu_index_is_used_without_a_driver(place: Place, no_driver: str) -> None:
    place.run_changed_tool(no_driver)
    assert place.packages() == {"torch": CPU}


def test_cpu_index_is_used_although_the_default_index_hangs(
    index: Index, place: Place, no_driver: str
) -> None:
    index.hanging.add("/default/torch/")
    place.run_changed_tool(f"{no_driver}; tool.SILENCE_SECONDS = 2")
    assert place.packages() == {"torch": CPU}


@pytest.mark.parametrize("change", ["tool.has_nvidia_driver = lambda: True", "sys.platform = 'darwin'"])
def test_cpu_index_is_not_requested_where_the_default_build_is_right(
    index: Index, place: Place, no_driver: str, change: str
) -> None:
    assert place.run_changed_tool(f"{no_driver}; {change}") == ""
    assert index.requests_to("cpu") == []
    assert place.packages() == {}


def test_local_build_is_left_to_pip(index: Index, place: Place, no_driver: str, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / CPU_WHEEL[0]).write_bytes(CPU_WHEEL[1])
    assert place.run_changed_tool(no_driver, PIP_FIND_LINKS=str(wheels)) == ""
    assert index.requests_to("cpu") == []


def test_empty_torch_index_leaves_torch_to_pip(index: Index, place: Place, no_driver: str) -> None:
    assert place.run_changed_tool(no_driver, TORCH_INDEX="") == ""
    assert index.requested == []


def test_installed_torch_of_the_pinned_version_stays(index: Index, place: Place, no_driver: str) -> None:
    place.run_pip("install", "-qq", "-c", str(CONSTRAINTS), "torch>=2.10")
    assert place.packages() == CUDA_TOO
    assert place.run_changed_tool(no_driver, TORCH_INDEX=index.cpu) == ""
    assert index.requests_to("cpu") == []


def test_installed_torch_of_another_version_is_replaced(
    index: Index, place: Place, no_driver: str, tmp_path: Path
) -> None:
    index.put("/cpu/torch/", wheel("torch", "2.10.0+cpu"), CPU_WHEEL)
    old = index.files["/cpu/torch/torch-2.10.0+cpu-py3-none-any.whl"]
    file = tmp_path / "torch-2.10.0+cpu-py3-none-any.whl"
    file.write_bytes(old)
    place.run_pip("install", "-qq", "--no-deps", str(file))
    place.run_changed_tool(no_driver)
    assert place.packages() == {"torch": CPU}


SMI = {
    "lists a GPU": ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'", True),
    "lists none": ("echo 'No devices found.'", False),
    "fails": ("echo 'could not communicate with the NVIDIA driver'; exit 9", False),
    "hangs": ("exec sleep 60", False),
    "is not there": (None, False),
}
LIBRARY = {"has a GPU": ("0", True), "has none": ("100", False), "hangs": ("time.sleep(60)", False)}


@pytest.mark.parametrize("smi", SMI)
def test_driver_is_detected_by_nvidia_smi(place: Place, tmp_path: Path, smi: str) -> None:
    script, answers = SMI[smi]
    assert detect_driver(place, tmp_path, script, "1 / 0", timeout_of(smi)) is answers


@pytest.mark.parametrize("library", LIBRARY)
def test_driver_is_detected_by_its_library(place: Place, tmp_path: Path, library: str) -> None:
    code, answers = LIBRARY[library]
    assert detect_driver(place, tmp_path, None, code, timeout_of(library)) is answers


def timeout_of(case: str) -> int:
    """A short timeout for what hangs, a long one for what answers, on a busy machine too."""
    return 1 if case == "hangs" else SECONDS


def detect_driver(place: Place, folder: Path, smi: str | None, code: str, seconds: int) -> bool:
    """What the tool finds if nvidia-smi is this script, and cuInit of libcuda returns this value."""
    for name in ("sh", "sleep"):
        (folder / name).symlink_to(str(shutil.which(name)))
    if smi is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (folder / "nvidia-smi").chmod(0o755)
    (folder / "sitecustomize.py").write_text(
        "import ctypes, time, types\n"
        "def load(name):\n"
        "    assert name == 'libcuda.so.1'\n"
        f"    return types.SimpleNamespace(cuInit=lambda flags: {code})\n"
        "ctypes.CDLL = load\n"
    )
    output = place.run_changed_tool(
        f"tool.SILENCE_SECONDS = {seconds}; tool.main = lambda: print(tool.has_nvidia_driver())",
        PATH=str(folder),
        PYTHONPATH=str(folder),
    )
    return {"True": True, "False": False}[output.strip()]


BACKEND = '''
"""Builds a project with one dependency, without build tools."""

import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "project-1-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder) / name, "w") as archive:
        about = "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\nRequires-Dist: torch>=2.10\\n"
        archive.writestr("project-1.dist-info/METADATA", about)
        archive.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        archive.writestr("project-1.dist-info/RECORD", "")
    return name
'''


def work(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL, *FOREIGN)


@pytest.mark.parametrize(
    ("behave", "packages"),
    [(work, CPU_ALONE), (hang, CUDA_TOO), (lack_the_page, CUDA_TOO)],
    ids=["works", "hangs", "404"],
)
def test_make_installs_torch_from_the_cpu_index_and_the_rest_from_the_default(
    index: Index, tmp_path: Path, behave: Callable[[Index], None], packages: dict[str, str]
) -> None:
    """The Makefile itself, for a project that depends on torch only. The first case also creates the
    environment.
    """
    behave(index)
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    for file in (ROOT / "Makefile", CONSTRAINTS, TOOL):
        shutil.copy(file, folder / file.relative_to(ROOT))
    (folder / "pyproject.toml").write_text(BUILD)
    (folder / "backend.py").write_text(BACKEND)
    if behave is not work:
        make_environment(folder / ".venv")
    project = Place(folder, environment(index, tmp_path))
    project.run("make", ".venv/.installed", f"PYTHON={sys.executable}", TORCH_INDEX=index.cpu)
    assert index.requests_to("cpu")
    installed = Place(folder / ".venv", project.environment).packages()
    installed.pop("setuptools", None)  # comes with Python 3.11 itself
    assert installed == {"project": "1", **packages}


@pytest.mark.parametrize(
    ("chosen", "packages"),
    [("/cpu", CPU_ALONE), ("", CUDA_TOO)],
    ids=["CPU", "CUDA"],
)
def test_worker_image_installs_torch_like_make(
    index: Index, place: Place, chosen: str, packages: dict[str, str]
) -> None:
    """The lines of its Dockerfile that install torch, run here."""
    work(index)
    text = DOCKERFILE.read_text().replace("\\\n", "")
    [sources] = re.findall(r"^COPY (.+torch_index\.py) \./$", text, re.MULTILINE)
    for source in sources.split():
        shutil.copy(ROOT / source, place.folder)
    [line] = re.findall(r"^RUN (.+torch_index\.py.+)$", text, re.MULTILINE)
    place.run(
        "sh",
        "-ec",
        line.replace("/opt/touchstone", str(place.folder)),
        TORCH_INDEX=chosen and index.url + chosen,
    )
    assert place.packages() == packages


def test_make_and_worker_image_use_one_index_and_no_extra_index() -> None:
    [default] = re.findall(r"^ARG TORCH_INDEX=(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert f'CPU_INDEX = "{default}"' in TOOL.read_text()
    for file in (ROOT / "Makefile", ROOT / ".ci/run", TOOL, *DOCKERFILE.parent.iterdir()):
        assert "extra-index" not in file.read_text()
