"""A skip may hide that a tool is missing: in CI, where nothing may be missing, it is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = {
    "inside": "def test_it():\n    pytest.skip('no tool')",
    "by its mark": "@pytest.mark.skip(reason='no tool')\ndef test_it():\n    pass",
    "without a library": "def test_it():\n    pytest.importorskip('no_such_library')",
}


@pytest.mark.parametrize("how", SKIPPED)
def test_skipped_test_fails_in_ci(tmp_path: Path, how: str) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(f"import pytest\n{SKIPPED[how]}\n")
    path = str(ROOT)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "api_tests.conftest", str(test)]
    for ci, code in ("1", 1), ("", 0):
        environment = {**os.environ, "PYTHONPATH": path, "TOUCHSTONE_CI": ci}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
