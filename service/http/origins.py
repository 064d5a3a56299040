"""Protection from foreign web pages where no key is needed.

A browser on this machine lets any page send requests to the loopback. A page whose own name resolves to this
machine (DNS rebinding) is recognized by `Host`, one that posts a form from another site by `Origin`. Where
keys are required neither is checked: a page cannot send a key that it does not know.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from touchstone.errors import CrossSiteRefused, Failure, HostRefused
from touchstone.settings import Settings, on_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")


class Origins:
    """ASGI middleware that refuses requests that a foreign page may have sent."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or write the problem."""
        app = self._app
        if scope["type"] == "http" and not self._settings.needs_keys:
            failure = self._find_refusal(scope["method"], Headers(scope=scope))
            if failure is not None:
                app = problems.from_failure(Request(scope), failure)
        await app(scope, receive, send)

    def _find_refusal(self, method: str, headers: Headers) -> Failure | None:
        host = headers.get("host", "")
        if not self._is_own(_parse_hostname(host)):
            return HostRefused(
                f"Host: {host[:100]!r} is not this machine; without API keys only loopback names are "
                "answered, and those in TOUCHSTONE_ALLOWED_HOSTS"
            )
        if method not in _SAFE and self._is_foreign(headers, host):
            return CrossSiteRefused("Origin: a page from elsewhere sent this; without API keys it may not")
        return None

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        if headers.get("sec-fetch-site", "none") not in _OWN:
            return True
        there = headers.get("origin", f"//{host}").partition("//")[2]
        return there != host and _parse_hostname(there) not in self._settings.hosts

    def _is_own(self, name: str) -> bool:
        return name in self._settings.hosts or on_loopback(name)


def _parse_hostname(authority: str) -> str:
    """The host of `host:port`; empty where that is malformed, or has a % as in zones of IPv6 addresses."""
    try:
        return "" if "%" in authority else urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
