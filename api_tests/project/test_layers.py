"""Who may import whom: heavy and foreign packages stay in the layers that are there for them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for part in ("touchstone", "service", "workers") for path in (ROOT / part).rglob("*.py"))

MAY_IMPORT = {
    "torch": (
        "touchstone/engine/",
        "touchstone/evaluation/",
        "touchstone/registration/",
        "touchstone/training/",
        "touchstone/models/",
        "workers/",
    ),
    "celery": ("service/state/dispatch.py", "workers/"),
    "kombu": ("workers/",),
    "redis": ("touchstone/ledger/",),
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
        ("service.app", ("torch", "scipy", "workers", "touchstone.engine.scheduler.engine")),
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
        "create_app(Settings(home=Path('nowhere')), ring=print).openapi(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False"]
