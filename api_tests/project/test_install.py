"""Installing torch: alone from the index that is for it, or as ever where that index is of no use."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/torch_index.py"
DOCKERFILE = ROOT / "docker/worker.Dockerfile"
CONSTRAINTS = ROOT / "constraints.txt"
[VERSION] = re.findall(r"^torch==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
[FILELOCK] = re.findall(r"^filelock==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
CPU = f"{VERSION}+cpu"
CPU_ALONE = {"torch": CPU, "filelock": FILELOCK}
"""What is installed where the index for the CPU is of use: torch from there, and what torch needs."""
CUDA_TOO = {"torch": VERSION, "filelock": FILELOCK, "nvidia-cublas": "13"}
"""What the default index's build brings along."""
SECONDS = 240
"""Within which anything here is done, on a busy machine too; an index that hangs outlasts them."""


BUILD = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
"""How a project says that a module of its own builds it."""


def wheel(name: str, version: str, *requires: str, tag: str = "py3-none-any") -> tuple[str, bytes]:
    """The name of a wheel's file and what is in it: a module that knows its version."""
    about = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{about}/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{name}-{version}-{tag}.whl", data.getvalue()


CPU_WHEEL = wheel("torch", CPU, "filelock")
# Newer than the constraints want it, and of the very version that they want.
FOREIGN = (wheel("filelock", "99"), wheel("filelock", FILELOCK, "nvidia-cublas"))


@dataclass
class Index:
    """An index on the loopback: what it holds, where it says nothing or drips, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    dripping: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def put(self, page: str, *wheels: tuple[str, bytes], digest: str | None = None) -> None:
        """A page that links to these wheels, with their digests."""
        lines = []
        for name, data in wheels:
            self.files[f"{page}{name}"] = data
            lines.append(f'<a href="{name}#sha256={digest or hashlib.sha256(data).hexdigest()}">{name}</a>')
        self.files[page] = f"<!DOCTYPE html><html><body>{'<br>'.join(lines)}</body></html>".encode()

    def asked_of(self, part: str) -> list[str]:
        return [path for path in self.asked if path.startswith(f"/{part}/")]

    @property
    def cpu(self) -> str:
        return f"{self.url}/cpu"


class Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        path = self.path.replace("%2B", "+")
        self.index.asked.append(path)
        if path in self.index.silent:
            self.index.over.wait()
        elif path in self.index.dripping:
            self.drip()
        else:
            self.answer(self.index.files.get(path))

    def answer(self, data: bytes | None) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header(
            "Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def drip(self) -> None:
        """A byte now and then: no silence is ever long."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        try:
            while not self.index.over.wait(0.1):
                self.wfile.write(b" ")
        except OSError:
            pass  # whoever asked has left, as he should

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[Index]:
    """A default index with torch for CUDA, and nothing yet under /cpu/."""
    index = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfIndex", (Handler,), {"index": index}))
    index.url = f"http://127.0.0.1:{server.server_port}"
    index.put("/default/torch/", wheel("torch", VERSION, "filelock", "nvidia-cublas"), wheel("torch", "99"))
    index.put("/default/filelock/", wheel("filelock", FILELOCK))
    index.put("/default/nvidia-cublas/", wheel("nvidia_cublas", "13"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield index
    index.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Place:
    """A virtual environment with pip alone, whose pip knows the index of the test and no other."""

    folder: Path
    environment: dict[str, str]

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    def called(self, *command: str, **environment: str) -> str:
        """What a command prints that must succeed, and in time."""
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def take(self, **environment: str) -> str:
        """Run the tool as the Makefile does."""
        return self.called(self.python, str(TOOL), str(CONSTRAINTS), **environment)

    def take_with(self, changes: str, **environment: str) -> str:
        """Run the tool after these changes to it."""
        program = (
            f"import sys; sys.path.insert(0, {str(TOOL.parent)!r}); import torch_index as tool\n{changes}"
        )
        return self.called(self.python, "-c", f"{program}\ntool.main()", str(CONSTRAINTS), **environment)

    def install(self) -> None:
        """What the Makefile does next, for a project that needs torch."""
        pip = (self.python, "-m", "pip", "install", "-qq", "-c", str(CONSTRAINTS))
        self.called(*pip, "torch>=2.10")

    def packages(self) -> dict[str, str]:
        """What is installed, by the names and versions of its files."""
        found = self.folder.glob("lib/python*/site-packages/*.dist-info")
        pairs = (path.name.removesuffix(".dist-info").split("-") for path in found)
        return {name.replace("_", "-"): version for name, version in pairs if name != "pip"}


@pytest.fixture
def place(tmp_path: Path, index: Index) -> Place:
    folder = tmp_path / "place"
    venv.create(folder, with_pip=False, symlinks=True)
    pip = importlib.util.find_spec("pip")
    assert pip
    assert pip.origin
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(pip.origin).parent)
    (folder / "bin/pip").write_text(f'#!/bin/sh\nexec {folder}/bin/python -m pip "$@"\n')
    (folder / "bin/pip").chmod(0o755)
    return Place(folder, environment(index, tmp_path))


def environment(index: Index, home: Path) -> dict[str, str]:
    """One in which pip knows no index but the default one, wherever the tests run."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index.url}/default",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_torch_alone_comes_from_the_index_that_is_for_it(index: Index, place: Place) -> None:
    """Other names are offered there, on pages of their own and on torch's; none is taken, or asked for."""
    page = "/cpu/torch/"
    index.put(page, CPU_WHEEL, wheel("torch", "99+cpu"), *FOREIGN)
    index.put("/cpu/filelock/", *FOREIGN)
    said = place.take(TORCH_INDEX=index.cpu)
    assert f"Installing torch {CPU} from 127.0.0.1" in said
    assert place.packages() == {"torch": CPU}
    place.install()
    assert place.packages() == CPU_ALONE
    assert set(index.asked_of("cpu")) == {page, page + CPU_WHEEL[0]}
    assert f"/default/filelock/{wheel('filelock', FILELOCK)[0]}" in index.asked


def hang(index: Index) -> None:
    index.silent.add("/cpu/torch/")


def drip(index: Index) -> None:
    index.dripping.add("/cpu/torch/")


def hang_in_the_download(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    index.silent.add(f"/cpu/torch/{CPU_WHEEL[0]}")


def lose_the_wheel(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    del index.files[f"/cpu/torch/{CPU_WHEEL[0]}"]


def stay_silent_about_torch(_index: Index) -> None:
    """Nothing is there: 404."""


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
    """A file that is called torch and holds something else."""
    index.put("/cpu/torch/", (CPU_WHEEL[0], wheel("torchx", CPU)[1]))


def damage(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL, digest=hashlib.sha256(b"another").hexdigest())


def offer_sources(index: Index) -> None:
    """They could be built; but a build may ask for anything, and takes a compiler."""
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


USELESS: list[Callable[[Index], None]] = [
    hang,
    drip,
    hang_in_the_download,
    lose_the_wheel,
    stay_silent_about_torch,
    list_nothing,
    list_other_versions,
    list_another_platform,
    list_another_python,
    list_another_name,
    hold_another_name,
    damage,
    offer_sources,
]
IMPATIENT = "tool.SILENCE_SECONDS = tool.DOWNLOAD_SECONDS = 2; tool.ANSWER_SECONDS = 10"


@pytest.mark.parametrize("fail", USELESS)
def test_an_index_of_no_use_is_passed_over(index: Index, place: Place, fail: Callable[[Index], None]) -> None:
    fail(index)
    said = place.take_with(IMPATIENT, TORCH_INDEX=index.cpu)
    assert f"127.0.0.1 gave no torch {VERSION}" in said
    assert index.asked_of("cpu"), "it was asked"
    assert max(map(index.asked.count, index.asked)) <= 2, "but not again and again"
    assert place.packages() == {}


def test_an_index_where_nobody_listens_is_passed_over(place: Place) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        said = place.take(TORCH_INDEX=f"http://127.0.0.1:{holder.getsockname()[1]}")
    assert f"127.0.0.1 gave no torch {VERSION}" in said
    assert place.packages() == {}


def test_a_password_is_not_shown(index: Index, place: Place) -> None:
    index.put("/cpu/torch/", CPU_WHEEL)
    said = place.take(TORCH_INDEX=index.cpu.replace("//", "//name:secret@"))
    assert place.packages() == {"torch": CPU}
    assert "secret" not in said


@pytest.fixture
def plain(index: Index) -> str:
    """Changes to the tool: the CPU's index is that of the test, and no driver answers."""
    index.put("/cpu/torch/", CPU_WHEEL)
    return f"tool.CPU_INDEX = {index.cpu!r}; tool.driver_answers = lambda: False; sys.platform = 'linux'"


def test_without_a_driver_the_index_for_the_cpu_is_asked(place: Place, plain: str) -> None:
    place.take_with(plain)
    assert place.packages() == {"torch": CPU}


def test_it_is_asked_even_where_the_default_index_is_silent(index: Index, place: Place, plain: str) -> None:
    index.silent.add("/default/torch/")
    place.take_with(f"{plain}; tool.SILENCE_SECONDS = 3")
    assert place.packages() == {"torch": CPU}


@pytest.mark.parametrize("change", ["tool.driver_answers = lambda: True", "sys.platform = 'darwin'"])
def test_where_the_default_build_is_right_no_other_index_is_asked(
    index: Index, place: Place, plain: str, change: str
) -> None:
    assert place.take_with(f"{plain}; {change}") == ""
    assert index.asked_of("cpu") == []
    assert place.packages() == {}


def test_a_build_at_hand_is_left_to_pip(index: Index, place: Place, plain: str) -> None:
    wheels = place.folder / "wheels"
    wheels.mkdir()
    (wheels / CPU_WHEEL[0]).write_bytes(CPU_WHEEL[1])
    assert place.take_with(plain, PIP_FIND_LINKS=str(wheels)) == ""
    assert index.asked_of("cpu") == []


def test_whoever_names_no_index_gets_the_default(index: Index, place: Place, plain: str) -> None:
    assert place.take_with(plain, TORCH_INDEX="") == ""
    assert index.asked == []


def test_a_torch_that_is_there_stays(index: Index, place: Place, plain: str) -> None:
    place.install()
    assert place.packages() == CUDA_TOO
    assert place.take_with(plain, TORCH_INDEX=index.cpu) == ""
    assert index.asked_of("cpu") == []


def test_a_torch_of_another_version_gives_way(index: Index, place: Place, plain: str) -> None:
    index.put("/cpu/torch/", wheel("torch", "2.10.0+cpu"), CPU_WHEEL)
    old = index.files["/cpu/torch/torch-2.10.0+cpu-py3-none-any.whl"]
    file = place.folder / "torch-2.10.0+cpu-py3-none-any.whl"
    file.write_bytes(old)
    place.called(place.python, "-m", "pip", "install", "-qq", "--no-deps", str(file))
    place.take_with(plain)
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
def test_a_driver_answers_by_its_tool(place: Place, smi: str) -> None:
    script, answers = SMI[smi]
    assert driver_answers(place, script, "1 / 0", patience(smi)) is answers


@pytest.mark.parametrize("library", LIBRARY)
def test_a_driver_answers_by_its_library(place: Place, library: str) -> None:
    code, answers = LIBRARY[library]
    assert driver_answers(place, None, code, patience(library)) is answers


def patience(how: str) -> int:
    """Seconds that what hangs is given, and those in which anything else answers on a busy machine."""
    return 2 if how == "hangs" else SECONDS


def driver_answers(place: Place, smi: str | None, code: str, seconds: int) -> bool:
    """What the tool finds where nvidia-smi is this script, and libcuda's cuInit gives what this code does."""
    folder = place.folder / "driver"
    folder.mkdir()
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
    said = place.take_with(
        f"tool.SILENCE_SECONDS = {seconds}; tool.main = lambda: print(tool.driver_answers())",
        PATH=str(folder),
        PYTHONPATH=str(folder),
    )
    return {"True": True, "False": False}[said.strip()]


BACKEND = '''
"""Builds a project of one dependency, without a tool from an index."""

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


def answer(index: Index) -> None:
    index.put("/cpu/torch/", CPU_WHEEL, *FOREIGN)


@pytest.mark.parametrize(
    ("behave", "packages"),
    [(answer, CPU_ALONE), (hang, CUDA_TOO), (stay_silent_about_torch, CUDA_TOO)],
    ids=["answers", "hangs", "404"],
)
def test_make_installs_torch_from_there_and_all_else_as_before(
    index: Index, tmp_path: Path, behave: Callable[[Index], None], packages: dict[str, str]
) -> None:
    """The Makefile itself, for a project that needs nothing but torch."""
    behave(index)
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    for file in (ROOT / "Makefile", CONSTRAINTS, TOOL):
        shutil.copy(file, folder / file.relative_to(ROOT))
    (folder / "pyproject.toml").write_text(BUILD)
    (folder / "backend.py").write_text(BACKEND)
    made = Place(folder, environment(index, tmp_path))
    made.called("make", ".venv/.installed", f"PYTHON={sys.executable}", TORCH_INDEX=index.cpu)
    assert index.asked_of("cpu")
    installed = Place(folder / ".venv", made.environment).packages()
    installed.pop("setuptools", None)  # comes with Python 3.11 itself
    assert installed == {"project": "1", **packages}


@pytest.mark.parametrize(
    ("chosen", "packages"),
    [("/cpu", CPU_ALONE), ("", CUDA_TOO)],
    ids=["CPU", "CUDA"],
)
def test_the_workers_image_installs_torch_alike(
    index: Index, place: Place, chosen: str, packages: dict[str, str]
) -> None:
    """The lines of its Dockerfile up to torch, run here."""
    answer(index)
    text = DOCKERFILE.read_text().replace("\\\n", "")
    [sources] = re.findall(r"^COPY (.+torch_index\.py) \./$", text, re.MULTILINE)
    for source in sources.split():
        shutil.copy(ROOT / source, place.folder)
    [line] = re.findall(r"^RUN (.+torch_index\.py.+)$", text, re.MULTILINE)
    place.called(
        "sh",
        "-ec",
        line.replace("/opt/touchstone", str(place.folder)),
        TORCH_INDEX=chosen and index.url + chosen,
    )
    assert place.packages() == packages


def test_make_and_the_image_have_the_same_index_and_nothing_has_an_extra_one() -> None:
    [default] = re.findall(r"^ARG TORCH_INDEX=(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert f'CPU_INDEX = "{default}"' in TOOL.read_text()
    for file in (ROOT / "Makefile", ROOT / ".ci/run", TOOL, *DOCKERFILE.parent.iterdir()):
        assert "extra-index" not in file.read_text()
