"""The dashboard's files as the service hands them out; its pages are tested in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api_tests.support.fake_service import Api
from service.routers import dashboard

STATIC = Path(dashboard.__file__).parents[1] / "static"
IMPORT = re.compile(r'^(?:import|export|}) .*from "([^"]+)";$', re.MULTILINE)
DYNAMIC = re.compile(r'\bimport\("([^"]+)"\)')
MAX_PAGE_BYTES = 100_000
"""Bytes of a page, before they are compressed."""


def _addresses(page: str) -> set[str]:
    return set(re.findall(r'"(/assets/[^"]+)"', page))


def test_page_references_only_existing_files(api: Api) -> None:
    page = api.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "{" not in page.text
    named = _addresses(page.text)
    assert len(named) > 8
    for address in named:
        response = api.client.get(address)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]


def test_page_has_no_inline_script_or_style_and_its_policy_forbids_them(api: Api) -> None:
    page = api.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", page.text)


def test_modules_never_parse_text_as_markup() -> None:
    sinks = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
    for path in STATIC.rglob("app/**/*.js"):
        assert not sinks.search(path.read_text("utf-8")), path.name


def test_modules_import_only_files_of_this_origin() -> None:
    for path in STATIC.rglob("app/**/*.js"):
        for source in IMPORT.findall(path.read_text("utf-8")) + DYNAMIC.findall(path.read_text("utf-8")):
            assert source.startswith("."), f"{path.name} imports {source}"
            assert (path.parent / source).is_file(), f"{path.name} imports {source}"


def _with_imports(module: Path, known: set[Path]) -> set[Path]:
    """A module and all that it needs before it runs."""
    if module not in known:
        known.add(module)
        for source in IMPORT.findall(module.read_text("utf-8")):
            _with_imports((module.parent / source).resolve(), known)
    return known


@pytest.mark.parametrize("page", sorted(path.stem for path in STATIC.glob("app/pages/*.js")))
def test_page_with_its_modules_stays_below_the_size_limit(page: str) -> None:
    frame = {STATIC / "index.html", STATIC / "icon.svg", STATIC / "app/theme.js", *STATIC.glob("css/*.css")}
    modules = _with_imports(STATIC / "app/main.js", set()) | _with_imports(
        STATIC / f"app/pages/{page}.js", set()
    )
    assert sum(path.stat().st_size for path in frame | modules) < MAX_PAGE_BYTES


def test_dashboard_files_are_sent_compressed(api: Api) -> None:
    response = api.client.get(
        f"{dashboard.find_assets_path()}/app/main.js", headers={"Accept-Encoding": "gzip"}
    )
    assert response.headers["content-encoding"] == "gzip"
    assert response.text == (STATIC / "app/main.js").read_text("utf-8")


def test_missing_dashboard_file_is_a_404_problem(api: Api) -> None:
    response = api.client.get(f"{dashboard.find_assets_path()}/app/nothing.js")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
