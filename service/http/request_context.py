"""What every request gets: an id, a log line, a duration, security headers, at most one wait for an
unavailable ledger, and 500 as the last resort.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.auth import caller, rate_limits
from service.state.metrics import RequestMetrics
from touchstone.ledger.connection import wait_once
from touchstone.logs import bind_fields, get_logger

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_CLOSED = 499


class RequestContext:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = get_logger("access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(scope, send)
        with bind_fields(request_id=response.id), wait_once():
            await self._serve(scope, receive, response)

    async def _serve(self, scope: Scope, receive: Receive, response: _Response) -> None:
        try:
            await self._app(scope, receive, response.send)
        except ClientDisconnect:
            response.status = CLIENT_CLOSED
        except Exception:
            self._log.exception("request failed")
            if response.status:
                raise
            await problems.internal_error(Request(scope))(scope, receive, response.send)
        finally:
            self._log_request(response)

    def _log_request(self, response: _Response) -> None:
        seconds = time.perf_counter() - response.started
        route = response.route()
        self._metrics.observe(route, response.method, response.status, seconds)
        caller = response.caller()
        self._log.info(
            "request",
            tenant=caller.tenant if caller else None,
            key=caller.key_id if caller else None,
            method=response.method,
            route=route,
            status=response.status,
            ms=round(seconds * 1000, 1),
        )


class _Response:
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = time.perf_counter()
        self.id = _request_id(scope)
        self.status = 0

    @property
    def method(self) -> str:
        """The method, or OTHER: a client must not create labels in the metrics."""
        method: str = self._scope["method"]
        return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "OTHER"

    def route(self) -> str:
        """The template of the path, or a dash where no route matches."""
        route: Any = self._scope.get("route")
        return getattr(route, "path_format", None) or "-"

    def caller(self) -> caller.Caller | None:
        """The caller; None before it is authenticated."""
        return caller.find_caller(self._scope)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.update(rate_limits.headers(self._scope))
            if "authorization" in Headers(scope=self._scope):
                _keep_private(headers)
            headers["X-Request-Id"] = self.id
        await self._send(message)


def _keep_private(headers: MutableHeaders) -> None:
    """Keep the response to a key out of shared caches, and from others who use the same cache."""
    stated = headers.get("cache-control", "no-store").replace("public", "private")
    if "private" not in stated and "no-store" not in stated:
        stated = f"private, {stated}"
    headers["Cache-Control"] = stated
    headers.add_vary_header("Authorization")


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
