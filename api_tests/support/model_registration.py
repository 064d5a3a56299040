"""Registering a small model over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from api_tests.support.fake_service import (
    Api,
)
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx

ONNX = linear_onnx()


def manifest(model: str, **said: Any) -> dict[str, Any]:
    return {**REGISTRATION_FIELDS, "id": model, **said}


def send_registration(
    api: Api, model: str, data: bytes = ONNX, *, wait: int | None = 10, headers: Any = None, **said: Any
) -> httpx2.Response:
    """Register a model."""
    prefer = {"Prefer": f"wait={wait}"} if wait else {}
    return api.client.post(
        "/v1/models",
        files={"file": ("a.onnx", data)},
        data={"manifest": json.dumps(manifest(model, **said))},
        headers={**prefer, **(headers or {})},
    )
