"""Tests in environments other than the default one, and docs/test-matrix.md with what came of them.

    python -m tools.test_matrix

An environment whose programs are not installed is passed over; its last result stays in the document.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/test-matrix.md"
HEAD = """# Test matrix

What `make test-matrix` ran last in each environment. `make test` runs every test on the default one: the
Valkey that comes with Touchstone, a folder for blobs, the Python of the virtual environment.

| environment | tests | date | version | result |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Environment:
    """A server other than the default one, and the tests that run on it."""

    name: str
    program: str
    tests: tuple[str, ...]
    setting: str


ENVIRONMENTS = (
    Environment(
        "Redis as the ledger",
        "redis-server",
        ("api_tests/ledger", "api_tests/service/test_jobs.py", "api_tests/webhooks"),
        "TOUCHSTONE_TEST_LEDGER",
    ),
)


@contextmanager
def run_server(program: str, folder: Path) -> Iterator[str]:
    """The address of this server on a socket in the folder."""
    socket = folder / "server.sock"
    words = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists() and server.poll() is None:
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait()


def run(environment: Environment) -> str:
    """Run its tests; a row of the document."""
    with tempfile.TemporaryDirectory() as folder, run_server(environment.program, Path(folder)) as url:
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *environment.tests]
        env = os.environ | {environment.setting: url}
        done = subprocess.run(tests, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout[-4000:])
    result = done.stdout.strip().splitlines()[-1].strip("= ")
    version = subprocess.run([environment.program, "--version"], capture_output=True, text=True, check=True)
    number = re.search(r"v=([\d.]+)", version.stdout)
    tests_run = ", ".join(f"`{test}`" for test in environment.tests)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return f"| {environment.name} | {tests_run} | {date} | {number[1] if number else '?'} | {result} |"


def main() -> int:
    """Run what can be run, and write the document anew."""
    known = DOCUMENT.read_text("utf-8").splitlines() if DOCUMENT.exists() else []
    rows = {line.split("|")[1].strip(): line for line in known if line.startswith("| ")}
    failed = False
    for environment in ENVIRONMENTS:
        if shutil.which(environment.program) is None:
            print(f"{environment.name}: {environment.program} is not installed; passed over")
            continue
        rows[environment.name] = run(environment)
        failed |= "failed" in rows[environment.name] or "error" in rows[environment.name]
    DOCUMENT.write_text(HEAD + "".join(f"{rows[e.name]}\n" for e in ENVIRONMENTS if e.name in rows), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
