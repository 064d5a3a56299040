"""The dashboard: one page with its modules and styles, without any file from another host."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

router = APIRouter(include_in_schema=False)

_HERE = Path(str(files("service"))) / "static"

# Files of this origin alone; `trusted-types` makes the browser refuse to parse any text as markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


class Assets(StaticFiles):
    """Files whose address changes with their content, so that browsers cache them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file, cacheable for a year."""
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


@cache
def find_assets_path() -> str:
    """The path of the files, which has a digest of their content."""
    digest = hashlib.sha256()
    for path in sorted(_HERE.rglob("*.*")):
        digest.update(str(path.relative_to(_HERE)).encode() + b"\0" + path.read_bytes())
    return f"/assets/{digest.hexdigest()[:12]}"


def assets() -> ASGIApp:
    """Modules, styles and the icon."""
    return GZipMiddleware(Assets(directory=_HERE))


@router.get("/")
def show_dashboard() -> HTMLResponse:
    """The page; the fragment of its address selects the view."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse(_page(), headers=headers)


@cache
def _page() -> str:
    """The page with the addresses of its files, with preloads for those needed first."""
    styles = [
        f'<link rel="stylesheet" href="{find_assets_path()}/{one}">' for one in _list_files("css/*.css")
    ]
    modules = [
        f'<link rel="modulepreload" href="{find_assets_path()}/{one}">' for one in _list_files("app/*.js")
    ]
    indent = "\n    "
    return (
        (_HERE / "index.html")
        .read_text("utf-8")
        .replace("{styles}", indent.join(styles))
        .replace("{preloads}", indent.join(modules))
        .replace("{assets}", find_assets_path())
    )


def _list_files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(_HERE)) for path in _HERE.glob(pattern) if path.name != "theme.js")
