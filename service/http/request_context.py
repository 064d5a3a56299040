"""What every request gets: an id, a log line, a duration, headers for safety, one wait for the ledger, and
500 as the last resort.
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
from service.state.metrics import Durations
from touchstone.ledger.connection import waiting_once
from touchstone.logs import bound, get_logger

_SAFETY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_CLOSED = 499


class Edge:
    """The outermost ASGI middleware of our own."""

    def __init__(self, app: ASGIApp, durations: Durations) -> None:
        self._app = app
        self._durations = durations
        self._log = get_logger("access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        with bound(request_id=exchange.id), waiting_once():
            await self._serve(scope, receive, exchange)

    async def _serve(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_CLOSED
        except Exception:
            self._log.exception("request failed")
            if exchange.status:
                raise
            await problems.internal(Request(scope))(scope, receive, exchange.send)
        finally:
            self._note(exchange)

    def _note(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        route = exchange.route()
        self._durations.note(route, exchange.method, exchange.status, seconds)
        caller = exchange.caller()
        self._log.info(
            "request",
            tenant=caller.tenant if caller else None,
            key=caller.key_id if caller else None,
            method=exchange.method,
            route=route,
            status=exchange.status,
            ms=round(seconds * 1000, 1),
        )


class _Exchange:
    """One request and what was answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = time.perf_counter()
        self.id = _request_id(scope)
        self.status = 0

    @property
    def method(self) -> str:
        """The method, or OTHER: a client must not invent labels for the metrics."""
        method: str = self._scope["method"]
        return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "OTHER"

    def route(self) -> str:
        """The template of the path, or a dash where there is none."""
        route: Any = self._scope.get("route")
        return getattr(route, "path_format", None) or "-"

    def caller(self) -> caller.Caller | None:
        """Who sent it, once that is known."""
        return caller.found_in(self._scope)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SAFETY.items():
                headers.setdefault(name, value)
            headers.update(rate_limits.headers(self._scope))
            headers["X-Request-Id"] = self.id
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
