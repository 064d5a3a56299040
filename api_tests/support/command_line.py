"""Commands of the command line, run in this process."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest
from rich.console import Console

from touchstone.cli import app, backup, catalogue, console, methods, register, train

PRINTING = (app, backup, catalogue, console, methods, register, train)


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> CommandResult:
    """Run `touchstone` with these arguments, without wrapping its lines."""
    out, err = io.StringIO(), io.StringIO()
    for module in PRINTING:
        monkeypatch.setattr(module, "out", Console(file=out, width=300), raising=False)
        monkeypatch.setattr(module, "err", Console(file=err, width=300), raising=False)
    monkeypatch.setattr(sys, "argv", ["touchstone", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return CommandResult(int(ended.value.code or 0), out.getvalue(), err.getvalue())
