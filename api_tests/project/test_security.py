"""SECURITY.md: every threat has a control, and every test that is said to show one is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
TEXT = (HERE.parent / "SECURITY.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"
]
THREATS = {row[0]: row[2] for row in ROWS[2:]}


def names_in(path: Path) -> set[str]:
    return {part.name for part in ast.parse(path.read_text()).body if isinstance(part, ast.FunctionDef)}


@pytest.mark.parametrize("threat", THREATS)
def test_every_security_control_cites_existing_tests(threat: str) -> None:
    shown = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", THREATS[threat])
    assert shown
    assert len(shown) == THREATS[threat].count("`") / 2
    for file, name in shown:
        assert name in names_in(HERE / file), f"{file} has no {name}"


def test_every_security_row_names_threat_control_and_tests() -> None:
    assert len(THREATS) == len(ROWS) - 2 > 20
    assert all(len(row) == 3 and all(row) for row in ROWS)
