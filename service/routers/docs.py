"""The API's documentation as a page, without any file from another host."""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_HERE = Path(str(files("service"))) / "static"

# The page sets styles on its elements; scripts come from files alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def assets() -> StaticFiles:
    """Swagger UI, as the package `fastapi-offline` ships it."""
    return StaticFiles(packages=[("fastapi_offline", "static")])


@router.get("/docs")
def show_docs() -> FileResponse:
    """Every operation, with a form to try it."""
    return FileResponse(_HERE / "docs.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/start.js")
def start_docs() -> FileResponse:
    """The script that starts the page."""
    return FileResponse(_HERE / "docs.js")


@router.get("/openapi.json")
def get_openapi(request: Request) -> Response:
    """The OpenAPI document, compressed where the client accepts that: the schemas of all methods are long."""
    packed = "gzip" in request.headers.get("accept-encoding", "")
    body = _compress_openapi(request.app) if packed else _encode_openapi(request.app)
    headers = {"Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if packed else {})}
    return Response(body, headers=headers, media_type="application/json")


@cache
def _encode_openapi(app: FastAPI) -> bytes:
    return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()


@cache
def _compress_openapi(app: FastAPI) -> bytes:
    return gzip.compress(_encode_openapi(app))
