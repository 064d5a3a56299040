"""What keeps web pages out where no key is needed.

A browser on this machine reaches the loopback for any page that it shows. A page whose own name was made to
lead here (DNS rebinding) is told by the `Host` that it asks for, one that sends a form from elsewhere by its
`Origin`. Where keys are needed, no page can send one that it does not know, and neither is looked at.
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
    """ASGI middleware that refuses requests which a foreign page may have sent."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or write why not."""
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
    """The host of `host:port`; empty where it is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
