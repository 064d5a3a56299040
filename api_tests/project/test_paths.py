"""Every path and every dotted name in backticks, in documents and docstrings, exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("touchstone", "service", "workers", "api_tests", "benchmarks", "chaos")
FOLDERS = (*PACKAGES, "docs", "docker", "examples", ".ci")
DOCUMENTS = [
    *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

SUFFIXES = "css|html|js|json|lua|md|png|py|pyi|safetensors|svg|toml|txt|yml"
QUOTED = re.compile(r"`([^`]+)`")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w.*/-]*|[\w.*-]+/[\w.*/-]*\.(?:{SUFFIXES})")
DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/])")


def quoted(text: str) -> Iterator[str]:
    """What stands in backticks outside of blocks of code, paragraph by paragraph."""
    for paragraph in re.split(r"\n\s*\n", FENCED.sub("", text)):
        yield from QUOTED.findall(paragraph)


def missing(text: str) -> list[str]:
    """The paths and dotted names in backticks that do not exist."""
    paths = [word for code in quoted(text) for word in code.split() if PATH.fullmatch(word)]
    names = [name for code in quoted(text) for name in DOTTED.findall(code)]
    return [*(path for path in paths if not _exists(path)), *(name for name in names if not _resolves(name))]


def _exists(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()


@cache
def _resolves(name: str) -> bool:
    """Whether this is a module, or something that a module defines or imports at its top level."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if module := _module(".".join(parts[:length])):
            return _has(ast.parse(module.read_text("utf-8")), parts[length:])
    return False


def _module(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _has(scope: ast.AST, names: list[str]) -> bool:
    if not names:
        return True
    found = [node for node in _top_level(scope) if names[0] in _defined(node)]
    return any(
        len(names) == 1 or (isinstance(node, ast.ClassDef) and _has(node, names[1:])) for node in found
    )


def _top_level(scope: ast.AST) -> Iterator[ast.AST]:
    """What runs when the scope does, conditions included; nothing within functions or classes."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _top_level(node)


def _defined(node: ast.AST) -> list[str]:
    """The names that this node binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


def unreleased(text: str) -> str:
    """The part of the changelog that may still change."""
    return text.partition("## [Unreleased]")[2].partition("\n## [")[0]


def docstrings(text: str) -> str:
    """Every string that stands by itself in a file of Python."""
    return "\n\n".join(
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_names_in_documents_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    assert missing(unreleased(text) if document.name == "CHANGELOG.md" else text) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_paths_and_names_in_docstrings_exist(package: str) -> None:
    files = [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
    wrong = {
        path.relative_to(ROOT).as_posix(): names
        for path in files
        if (names := missing(docstrings(path.read_text("utf-8"))))
    }
    assert wrong == {}


def test_what_does_not_exist_is_found() -> None:
    there = (
        "`service/problems.py`",
        "`docs/`",
        "`touchstone/models/cards/*.json`",
        "`python -m chaos.document`",
        "`touchstone.load(id)`",
        "`service.problems`",
        "`touchstone.engine.scheduler.batcher.Batcher.step`",
        "`/v1/models`",
        "`timm/NAME`",
        "```\n`service/nowhere.py`\n```",
    )
    assert missing("\n\n".join(there)) == []
    gone = (
        "service/nowhere.py",
        "docs/nowhere/",
        "models/*.nowhere.json",
        "touchstone.nowhere",
        "service.problems.nowhere",
        "touchstone.engine.scheduler.batcher.Batcher.nowhere",
    )
    assert missing("\n".join(f"see `{name}`, or\n`x`" for name in gone)) == list(gone)
    assert missing(docstrings('def f():\n    """See `service/nowhere.py`."""')) == ["service/nowhere.py"]
    assert unreleased("# C\n\n## [Unreleased]\n\n`new`\n\n## [0.1.0]\n\n`old`\n").split() == ["`new`"]


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_headings_that_exist(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text("utf-8"))
    wrong = [
        f"{target}#{anchor}"
        for target, anchor in links
        if anchor not in anchors(document.parent / target if target else document)
    ]
    assert wrong == []
