"""Who may import whom: heavy and foreign packages stay in the layers that are there for them."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.package_graph import (
    PICTURE,
    ROOT,
    draw_graph,
    find_circle,
    find_package,
    find_upward_imports,
    read_graph,
)

FILES = sorted(path for part in ("touchstone", "service", "workers") for path in (ROOT / part).rglob("*.py"))
TESTS = sorted((ROOT / "api_tests").rglob("*.py"))
GRAPH = read_graph()

MAY_IMPORT = {
    "torch": (
        "touchstone/engine/",
        "touchstone/evaluation/",
        "touchstone/registration/",
        "touchstone/training/",
        "touchstone/models/",
        "workers/",
    ),
    "celery": ("workers/",),
    "kombu": ("workers/",),
    "redis": ("touchstone/ledger/", "touchstone/backup/"),
    "fastapi": ("service/",),
    "starlette": ("service/",),
    "uvicorn": ("service/",),
    "ssl": ("touchstone/net/outbound.py",),
    "service": ("service/",),
    "workers": ("workers/",),
}


def list_imported_packages(tree: ast.AST) -> Iterator[str]:
    """The packages that a module imports, wherever in it; those for the type checker alone do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        else:
            yield from list_imported_packages(node)


def find_forbidden_imports(path: str, text: str) -> list[str]:
    """The packages that this file imports and may not."""
    return [
        package
        for package in list_imported_packages(ast.parse(text))
        if package in MAY_IMPORT and not path.startswith(MAY_IMPORT[package])
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_imports_only_what_its_layer_may(path: Path) -> None:
    assert find_forbidden_imports(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("path", "text", "package"),
    [
        ("service/app.py", "import torch", "torch"),
        ("service/app.py", "def f():\n    from celery.app import x", "celery"),
        ("touchstone/evaluation/run.py", "import redis.client", "redis"),
        ("workers/tasks.py", "from fastapi import FastAPI", "fastapi"),
        ("workers/tasks.py", "from service.app import create_app", "service"),
        ("touchstone/attacks/pgd.py", "try:\n    import torch\nexcept ImportError:\n    pass", "torch"),
    ],
)
def test_forbidden_import_is_reported(path: str, text: str, package: str) -> None:
    assert find_forbidden_imports(path, text) == [package]


def test_type_checking_import_is_not_reported() -> None:
    assert find_forbidden_imports("service/app.py", "if TYPE_CHECKING:\n    import torch\n") == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("service.app", ("torch", "onnx", "scipy", "workers", "touchstone.engine.scheduler.engine")),
        ("service.__main__", ("torch", "workers")),
        ("touchstone", ("torch", "fastapi", "celery", "redis")),
        ("touchstone.ledger.ledger", ("torch", "fastapi", "celery")),
        ("workers.celery_app", ("fastapi", "uvicorn", "service")),
    ],
)
def test_module_import_does_not_load_unneeded_packages(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_openapi_with_the_catalogue_is_built_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from touchstone.settings import Settings;"
        "from service.app import create_app;"
        "create_app(Settings(home=Path('nowhere')), dispatch=print).openapi(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False"]


def test_packages_import_only_what_stands_below_them() -> None:
    assert find_upward_imports(GRAPH) == []


def test_no_files_import_one_another_in_a_circle() -> None:
    assert find_circle(GRAPH) == []


def test_upward_import_and_circle_are_found() -> None:
    graph = {
        "touchstone.errors": frozenset({"service.app"}),
        "service.app": frozenset({"service.schemas"}),
        "service.schemas": frozenset({"service.app"}),
    }
    upward = ["touchstone.errors imports service.app", "service.schemas imports service.app"]
    assert find_upward_imports(graph) == upward
    assert find_circle(graph) == ["service.app", "service.schemas", "service.app"]


def test_imports_for_types_alone_count_in_the_order_of_packages(tmp_path: Path) -> None:
    (tmp_path / "touchstone").mkdir()
    typing = "if TYPE_CHECKING:\n    from touchstone.settings import Settings\n"
    (tmp_path / "touchstone/errors.py").write_text(typing)
    (tmp_path / "touchstone/settings.py").write_text("from touchstone import errors\n")
    graph = read_graph(tmp_path)
    assert graph["touchstone.errors"] == {"touchstone.settings"}
    assert graph["touchstone.settings"] == {"touchstone.errors"}


def test_every_module_stands_in_a_layer_of_its_own_or_its_package() -> None:
    top = {"touchstone", "service", "service.app", "service.__main__"}
    assert {module for module in GRAPH if find_package(module) in ("touchstone", "service")} == top


def test_picture_of_the_packages_is_drawn_from_the_imports() -> None:
    assert draw_graph(GRAPH) == PICTURE.read_text("utf-8"), "run python -m tools.package_graph"


def test_architecture_page_names_every_package() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    packages = sorted(path.parent for path in FILES if path.name == "__init__.py")
    assert [package.name for package in packages if f"{package.name}/" not in page] == []


NOUNS = {"smoothing", "preprocessing", "sampling", "rounding", "pooling", "indexing"}
"""The field's nouns in -ing; no other module has a name in -ing."""


def test_no_module_but_the_fields_nouns_is_named_in_ing() -> None:
    modules = [path for path in [*FILES, *TESTS] if not path.stem.startswith("test_")]
    assert [str(path) for path in modules if path.stem.endswith("ing") and path.stem not in NOUNS] == []


ROUTERS_AND_WHAT_THEY_SERVE = {
    ("service", "metrics"): {"routers/metrics.py", "state/metrics.py"},
    ("service", "operations"): {"routers/operations.py", "openapi/operations.py"},
}
"""The only files of one stem within a package."""


def find_same_stems(package: Path) -> dict[tuple[str, str], set[str]]:
    """Files of one stem in a package and the packages in it."""
    files: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        if not path.stem.startswith("__"):
            files.setdefault(path.stem, set()).add(path.relative_to(package).as_posix())
    return {(package.name, stem): found for stem, found in files.items() if len(found) > 1}


def test_no_package_has_two_files_of_one_stem() -> None:
    packages = [ROOT / "service", ROOT / "workers", *(ROOT / "touchstone").iterdir()]
    found = [find_same_stems(package) for package in packages if package.is_dir()]
    assert {key: files for same in found for key, files in same.items()} == ROUTERS_AND_WHAT_THEY_SERVE


def test_no_folder_but_attacks_holds_more_than_28_python_files() -> None:
    folders = Counter(path.parent.relative_to(ROOT).as_posix() for path in [*FILES, *TESTS])
    assert {folder for folder, files in folders.items() if files > 28} <= {"touchstone/attacks"}
