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


def find_quoted(text: str) -> Iterator[str]:
    """The texts in backticks outside of code blocks, paragraph by paragraph."""
    for paragraph in re.split(r"\n\s*\n", FENCED.sub("", text)):
        yield from QUOTED.findall(paragraph)


def find_missing(text: str) -> list[str]:
    """The paths and dotted names in backticks that do not exist."""
    paths = [word for code in find_quoted(text) for word in code.split() if PATH.fullmatch(word)]
    names = [name for code in find_quoted(text) for name in DOTTED.findall(code)]
    return [*(path for path in paths if not _exists(path)), *(name for name in names if not _resolves(name))]


def _exists(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()


@cache
def _resolves(name: str) -> bool:
    """Whether this is a module, or a name that a module defines or imports at its top level."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if module := _find_module(".".join(parts[:length])):
            return _defines(ast.parse(module.read_text("utf-8")), parts[length:])
    return False


def _find_module(name: str) -> Path | None:
    """The module's file, or the stub that lists its names."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    stub = Path(spec.origin).with_suffix(".pyi")
    return stub if stub.exists() else Path(spec.origin)


def _defines(scope: ast.AST, names: list[str]) -> bool:
    if not names:
        return True
    found = [node for node in _top_level(scope) if names[0] in _bound_names(node)]
    return any(
        len(names) == 1 or (isinstance(node, ast.ClassDef) and _defines(node, names[1:])) for node in found
    )


def _top_level(scope: ast.AST) -> Iterator[ast.AST]:
    """The statements of a scope, conditions included, without those of inner functions and classes."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _top_level(node)


def _bound_names(node: ast.AST) -> list[str]:
    """The names that this node binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


def read_unreleased(text: str) -> str:
    """The unreleased part of the changelog."""
    return text.partition("## [Unreleased]")[2].partition("\n## [")[0]


def read_docstrings(text: str) -> str:
    """Every string that is a statement of a Python file, docstrings included."""
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
    assert find_missing(read_unreleased(text) if document.name == "CHANGELOG.md" else text) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_paths_and_names_in_docstrings_exist(package: str) -> None:
    files = [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
    wrong = {
        path.relative_to(ROOT).as_posix(): names
        for path in files
        if (names := find_missing(read_docstrings(path.read_text("utf-8"))))
    }
    assert wrong == {}


def test_missing_paths_and_names_are_found() -> None:
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
    assert find_missing("\n\n".join(there)) == []
    gone = (
        "service/nowhere.py",
        "docs/nowhere/",
        "models/*.nowhere.json",
        "touchstone.nowhere",
        "service.problems.nowhere",
        "touchstone.engine.scheduler.batcher.Batcher.nowhere",
    )
    assert find_missing("\n".join(f"see `{name}`, or\n`x`" for name in gone)) == list(gone)
    assert find_missing(read_docstrings('def f():\n    """See `service/nowhere.py`."""')) == [
        "service/nowhere.py"
    ]
    assert read_unreleased("# C\n\n## [Unreleased]\n\n`new`\n\n## [0.1.0]\n\n`old`\n").split() == ["`new`"]


def read_anchors(document: Path) -> set[str]:
    """The anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_headings_have_targets(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text("utf-8"))
    wrong = [
        f"{target}#{anchor}"
        for target, anchor in links
        if anchor not in read_anchors(document.parent / target if target else document)
    ]
    assert wrong == []
