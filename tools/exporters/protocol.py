"""How a program in another environment is asked to export: lines of JSON. Standard library only."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Facts = dict[str, Any]
"""What the manifest of a file needs: `side`, `classes`, `layout`."""

Export = Callable[[Path], Facts]
"""Writes an ONNX file to this path."""


def serve(cases: Mapping[str, Export], packages: Sequence[str]) -> None:
    """Print the names of the cases and the versions of the packages, then answer each request of stdin."""
    answers = _take_stdout()
    _print_line(answers, {"cases": list(cases), "versions": _read_versions(packages)})
    for line in sys.stdin:
        request = json.loads(line)
        _print_line(answers, _answer(cases[request["case"]], Path(request["path"])))


def _take_stdout() -> IO[str]:
    """Standard output for the answers alone; what exporters print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _read_versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _answer(export: Export, path: Path) -> Facts:
    try:
        return export(path)
    except Exception as error:  # noqa: BLE001 - exporters raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _print_line(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()
