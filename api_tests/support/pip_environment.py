"""A virtual environment into which tests install, with the installer and pip imported beforehand."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api_tests.support.package_index import CONSTRAINTS, Index

TOOL = Path(__file__).parents[2] / "tools/torch_index.py"
SECONDS = 240
"""Timeout of any command here, on a busy machine too; an index that hangs lasts longer."""

PRELOADED = """
import io, json, os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import torch_index as tool
from pip._internal.cli.main import main as pip
from pip._internal.commands import index, install

def run(command, *, timeout=None, **options):
    if tuple(command[:3]) != tool.PIP[:3]:
        return start(command, timeout=timeout, **options)
    with open("pip.out", "w+") as out:
        pid = fork(lambda: pip(list(command[3:])), out if options.get("capture_output") else sys.stdout)
        end = time.monotonic() + (timeout or 1e9)
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                raise subprocess.TimeoutExpired(command, timeout)
            time.sleep(0.01)
        out.seek(0)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(ended[1]), out.read(), "")

def fork(action, out):
    out.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        code = action() or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)

def run_tool(changes, environment):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open("tool.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    exec(changes)
    tool.main()

start, subprocess.run = subprocess.run, run
sys.argv = ["torch_index.py", sys.argv[2]]
for line in sys.stdin:
    changes, environment = json.loads(line)
    with open("tool.out", "w") as out:
        pid = fork(lambda: run_tool(changes, environment), out)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""A program that runs the tool in forks of itself, and pip in forks of those. It has imported both: a start
of pip costs a second, and the tests need fifty.
"""


@dataclass
class Place:
    """A virtual environment with pip alone, whose pip knows only the index of the test."""

    folder: Path
    environment: dict[str, str]
    preloaded: subprocess.Popen[str] | None = None

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    def run(self, *command: str, **environment: str) -> str:
        """The output of a command that must succeed in time."""
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

    def run_tool(self, **environment: str) -> str:
        """Run the tool as the Makefile does."""
        return self.run(self.python, str(TOOL), str(CONSTRAINTS), **environment)

    def run_changed_tool(self, changes: str, **environment: str) -> str:
        """Run the tool after these changes to it."""
        assert self.preloaded
        assert self.preloaded.stdin
        assert self.preloaded.stdout
        self.preloaded.stdin.write(json.dumps([changes, {**self.environment, **environment}]) + "\n")
        self.preloaded.stdin.flush()
        code = self.preloaded.stdout.readline()
        output = (self.folder / "tool.out").read_text()
        assert code == "0\n", output + (self.folder / "tool.err").read_text()
        return output

    def install(self) -> None:
        """Install what needs torch, as the Makefile does next."""
        pip = (self.python, "-m", "pip", "install", "-qq", "-c", str(CONSTRAINTS))
        self.run(*pip, "torch>=2.10")

    def run_pip(self, *words: str) -> None:
        """Run the preloaded pip."""
        self.run_changed_tool(
            f"tool.main = lambda: subprocess.run((*tool.PIP, *{words!r})).check_returncode()"
        )

    def packages(self) -> dict[str, str]:
        """The installed packages, by the names and versions of their files."""
        found = self.folder.glob("lib/python*/site-packages/*.dist-info")
        pairs = (path.name.removesuffix(".dist-info").split("-") for path in found)
        return {name.replace("_", "-"): version for name, version in pairs if name != "pip"}

    def clear(self) -> None:
        """Delete everything but pip."""
        for path in self.folder.glob("lib/python*/site-packages/*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


@contextmanager
def run_preloaded_place(parent: Path) -> Iterator[Place]:
    """A place with the tool and pip preloaded."""
    folder = make_environment(parent / "place")
    environment = {name: os.environ[name] for name in ("PATH",)}
    command = [folder / "bin/python", "-c", PRELOADED, TOOL.parent, CONSTRAINTS]
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Place(folder, {}, process)
        assert process.stdin
        process.stdin.close()


def make_environment(folder: Path) -> Path:
    """A virtual environment with a link to the pip of the tests, which `python -m venv` would unpack for
    seconds.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    pip = importlib.util.find_spec("pip")
    assert pip
    assert pip.origin
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(pip.origin).parent)
    (folder / "bin/pip").write_text(f'#!/bin/sh\nexec {folder}/bin/python -m pip "$@"\n')
    (folder / "bin/pip").chmod(0o755)
    return folder


def environment(index: Index, home: Path) -> dict[str, str]:
    """An environment in which pip knows only the default index of the test, wherever the tests run."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index.url}/default",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
