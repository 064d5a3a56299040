"""A skip may hide a missing tool, so in CI a skipped test fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPING_TESTS = """
import pytest

def test_inside():
    pytest.skip("no tool")

@pytest.mark.skip(reason="no tool")
def test_by_its_mark():
    pass

def test_without_a_library():
    pytest.importorskip("no_such_library")
"""


@pytest.mark.parametrize(("ci", "code", "outcome"), [("1", 1, "2 failed, 1 error"), ("", 0, "3 skipped")])
def test_skipped_tests_fail_in_ci(tmp_path: Path, ci: str, code: int, outcome: str) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(SKIPPING_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "api_tests.conftest", str(test)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TOUCHSTONE_CI": ci,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{outcome} in")
