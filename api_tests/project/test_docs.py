"""Documents: their code runs, their settings exist, their links have targets."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from api_tests.support.own_models import onnx_file
from benchmarks.table import comparison_table
from touchstone.methods import catalogue
from touchstone.models.zoo import manifests
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def read_code_blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(code, id=f"{document.stem}-{number}")
    for document in DOCUMENTS
    if document.name not in ("CONTRIBUTING.md", "models.md", "webhooks.md")
    for number, code in enumerate(read_code_blocks(document, "python"))
]


def run_command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder and capture its output."""
    options = {"cwd": ROOT, "timeout": 100, **options}
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def python() -> Iterator[ProcessPoolExecutor]:
    """New interpreters that have imported the library already, which takes most of a short block's time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["touchstone.evaluation.library"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield pool


def run_block(code: str) -> None:
    (ROOT / "build").mkdir(exist_ok=True)
    os.chdir(ROOT)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_in_docs_run(code: str, python: ProcessPoolExecutor) -> None:
    python.submit(run_block, code).result(timeout=100)


def test_attack_recipe_in_contributing_passes_conformance_tests(tmp_path: Path) -> None:
    """The recipe, saved in a copy of the package, passes the conformance tests."""
    [code] = read_code_blocks(ROOT / "CONTRIBUTING.md", "python")
    _copy(ROOT / "touchstone", tmp_path / "touchstone")
    for part in ("api_tests", "pyproject.toml", "service", "workers"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "touchstone/attacks/ascent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    tests = ["-q", "-p", "no:cacheprovider", "-k", "ascent", "api_tests/methods/test_conformance.py"]
    done = run_command(sys.executable, "-m", "pytest", *tests, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".py":
                copy.write_text(file.read_text())
            else:
                copy.symlink_to(file)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service as `touchstone up` starts it."""
    with run_service(Settings(home=tmp_path_factory.mktemp("home"), port=0), lambda _line: None) as url:
        yield url


def test_readme_curl_attack_changes_the_predicted_class(address: str) -> None:
    job = run_readme_curl(address, "/v1/attacks/")
    assert job["result"]["success"] is True
    assert job["result"]["adversarial"]["label"] != job["result"]["original"]["label"]
    assert job["result"]["perturbation"]["linf"] <= 2 / 255


def run_readme_curl(address: str, path: str, **options: Any) -> dict[str, Any]:
    """Run the readme's curl line for this path; returns its job, which must have succeeded."""
    [line] = [
        code
        for code in read_code_blocks(ROOT / "README.md", "bash")
        if code.startswith("curl") and path in code
    ]
    words = shlex.split(line.replace("\\\n", " ").replace("http://127.0.0.1:8000", address))
    done = run_command(*words, "--silent", "--fail-with-body", **options)
    assert done.returncode == 0, done.stdout
    job: dict[str, Any] = json.loads(done.stdout)
    assert job["status"] == "succeeded", job["error"]
    return job


def test_readme_curl_line_registers_a_model(address: str, tmp_path: Path) -> None:
    shape = (3, 224, 224)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    (tmp_path / "my-net.onnx").write_bytes(onnx_file(nodes, {}, "y", classes=3, shape=shape))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    job = run_readme_curl(address, "/v1/models", cwd=tmp_path)
    assert job["result"]["model"]["classes"] == ["red", "green", "blue"]


def test_models_doc_commands_register_a_model(address: str, tmp_path: Path) -> None:
    document = ROOT / "docs/models.md"
    [export] = read_code_blocks(document, "python")
    [commands] = read_code_blocks(document, "bash")
    (tmp_path / "build").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    exported = run_command(sys.executable, "-c", export, cwd=tmp_path, env=environment)
    assert exported.returncode == 0, exported.stderr
    script = commands.replace("http://127.0.0.1:8000", address).replace(
        ".venv/bin/touchstone register", f"{sys.executable} -m touchstone register --url {address}"
    )
    done = run_command("bash", "-e", "-c", script, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Registered my-net as sha256:" in done.stdout
    assert '"status":"succeeded"' in done.stdout


def test_readme_commands_run() -> None:
    [block] = [
        code for code in read_code_blocks(ROOT / "README.md", "bash") if ".venv/bin/touchstone" in code
    ]
    (ROOT / "build").mkdir(exist_ok=True)
    for line in block.splitlines():
        words = shlex.split(line.replace(".venv/bin/touchstone", f"{sys.executable} -m touchstone"))
        done = run_command(*words)
        assert done.returncode == 0, done.stderr


def test_demo_writes_images_prints_curl_line_and_leaves_no_processes(tmp_path: Path) -> None:
    done = run_command(sys.executable, "-m", "touchstone", "demo", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "adversarial.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "side-by-side.png").exists()
    assert "curl -H 'Prefer: wait=30'" in done.stdout
    assert "success: L∞ 2/255" in done.stdout
    assert "espresso 95% → airliner 99%" in done.stdout
    processes = run_command("pgrep", "-f", str(tmp_path))
    assert processes.stdout == "", "the demo left processes running"


def settings_table() -> str:
    rows = ["| variable | default | what it does |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`".replace(str(Path.home()), "~")
        rows.append(f"| `TOUCHSTONE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_settings_table_in_docs_matches_the_settings() -> None:
    assert settings_table() in (ROOT / "docs/operations.md").read_text(), (
        f"it should be:\n\n{settings_table()}"
    )


def test_readme_figures_match_the_records() -> None:
    assert comparison_table() in (ROOT / "README.md").read_text(), f"it should be:\n\n{comparison_table()}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_relative_links_in_docs_point_to_existing_files(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_readme_names_every_model_and_changelog_every_method() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in manifests() if f"`{name}`" not in readme] == []
    changes = (ROOT / "CHANGELOG.md").read_text().lower()
    assert [name for name in catalogue() if name not in changes] == []
