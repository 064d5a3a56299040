"""Chromium for tests, with every error and every accessibility violation of a page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    Route,
    expect,
    sync_playwright,
)

ROOT = Path(__file__).parents[2]
AXE = ROOT / "build/npm/node_modules/axe-core/axe.min.js"
PICTURES = ROOT / "docs/pictures"

OpenPage = Callable[..., Page]

TIMEOUT_MS = 30_000  # milliseconds for an action or an expectation: the machine may be busy
CHROMIUM_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

DESKTOP: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}, "device_scale_factor": 1}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}

# The browser's own console message about a violation does not name its source.
_LOG_CSP_VIOLATIONS = """
addEventListener("securitypolicyviolation", (violation) => console.error(
  `CSP violation: ${violation.effectiveDirective} forbids ${violation.blockedURI}`
  + ` in ${violation.sourceFile}:${violation.lineNumber} ${violation.sample}`,
), true);
"""


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no Chromium, so nothing is tested in a browser: apt-get install chromium"
NO_AXE = "no axe-core, so accessibility is not tested: install npm, and `make test` fetches it"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium with a profile of its own.

    While it runs, this thread counts as running an event loop: `asyncio.run` fails in it.
    """
    if not CHROMIUM:
        pytest.skip(NO_CHROMIUM)
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, chromium_sandbox=False, args=CHROMIUM_FLAGS
        )
        yield browser
        browser.close()


@dataclass
class PageErrors:
    """The errors in the pages of a test, and those that the test expects or allows."""

    seen: list[str] = field(default_factory=list)
    _expected: list[str] = field(default_factory=list)
    _allowed: list[str] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Expect an error that must occur."""
        self._expected.append(pattern)

    def allow(self, pattern: str) -> None:
        """Allow an error that may occur."""
        self._allowed.append(pattern)

    def watch(self, context: BrowserContext, origin: str) -> None:
        """Record each error of this context's pages; a request to another origin is one."""
        context.add_init_script(_LOG_CSP_VIOLATIONS)
        context.on("console", self._record_console_error)
        context.on("weberror", lambda thrown: self.seen.append(f"uncaught: {thrown.error}"))
        context.on("page", lambda page: page.on("crash", self._record_crash))
        context.on("request", lambda request: self._check_origin(request, origin))
        context.on("requestfailed", self._check_failed_request)
        context.on("response", self._check_status)

    def list_unexpected(self) -> list[str]:
        """The errors that the test did not expect, and the expected ones that did not occur."""
        known = [*self._expected, *self._allowed]
        unexpected = [error for error in self.seen if not any(re.search(pattern, error) for pattern in known)]
        missing = [
            pattern for pattern in self._expected if not any(re.search(pattern, error) for error in self.seen)
        ]
        return unexpected + [f"expected, but did not occur: {pattern}" for pattern in missing]

    def _record_console_error(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            place = message.location
            self.seen.append(f"console: {message.text} ({place['url']}:{place['lineNumber']})")

    def _record_crash(self, page: Page) -> None:
        self.seen.append(f"crash: {page.url}")

    def _check_origin(self, request: Request, origin: str) -> None:
        if not request.url.startswith((f"{origin}/", "data:", "blob:")):
            self.seen.append(f"another origin: {request.url}")

    def _check_failed_request(self, request: Request) -> None:
        # The page itself aborts requests: a closed stream, a download, a page that was left.
        if request.failure != "net::ERR_ABORTED":
            self.seen.append(f"request failed: {request.failure} {request.url}")

    def _check_status(self, response: Response) -> None:
        if response.status >= 500:
            self.seen.append(f"{response.status}: {response.url}")


@contextmanager
def open_watched_page(
    browser: Browser, origin: str, page_errors: PageErrors, **options: Any
) -> Iterator[Page]:
    """A page in a fresh context with URLs relative to the origin; options are those of `new_context`."""
    defaults = {**DESKTOP, "locale": "en-US", "timezone_id": "UTC", "base_url": origin}
    context = browser.new_context(**{**defaults, **options})
    context.set_default_timeout(TIMEOUT_MS)
    page_errors.watch(context, origin)
    try:
        yield context.new_page()
        for page in context.pages:
            wait_for_pending_events(page)
    finally:
        context.close()


def wait_for_pending_events(page: Page) -> None:
    """Let the page emit its pending events."""
    page.evaluate("() => new Promise((done) => setTimeout(done))")


def wait_for_paint(page: Page) -> None:
    """Let the page paint its pending changes."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


class HeldRequests:
    """The first requests to a URL, held until the test responds to them; later ones continue."""

    def __init__(self, page: Page, url: str | re.Pattern[str], times: int = 1) -> None:
        self._page = page
        self._routes: list[Route] = []
        page.route(url, self._hold, times=times)

    def take(self) -> Route:
        """Wait for the next request, and return it."""
        while not self._routes:
            self._page.wait_for_timeout(10)
        return self._routes.pop(0)

    def _hold(self, route: Route) -> None:
        self._routes.append(route)


def axe(page: Page, within: str | None = None) -> list[str]:
    """The serious and critical violations that axe-core finds, one line for each rule.

    The debugger evaluates its source, which no content security policy forbids: the page keeps its own.
    """
    if not AXE.exists():
        pytest.skip(NO_AXE)
    page.evaluate(AXE.read_text())
    found: list[dict[str, Any]] = page.evaluate(
        "async (within) => (await axe.run(within ?? document, {resultTypes: ['violations']})).violations",
        within,
    )
    return [_format_violation(rule) for rule in found if rule["impact"] in ("serious", "critical")]


def _format_violation(rule: dict[str, Any]) -> str:
    places = "; ".join(f"{node['target']} {node['failureSummary']}" for node in rule["nodes"])
    return f"{rule['impact']} {rule['id']}: {rule['help']}: {places}"


def take_picture(page: Page, name: str, folder: Path = PICTURES, *, full_page: bool = False) -> Path:
    """Save a screenshot of the page without animations as `name`.png."""
    page.evaluate("() => document.fonts.ready")
    path = folder / f"{name}.png"
    page.screenshot(path=path, animations="disabled", caret="hide", full_page=full_page)
    return path


def open_job(page: Page, job: dict[str, Any]) -> None:
    """The page of a job, once it has drawn the first image."""
    page.goto(f"/#/jobs/{job['id']}")
    expect(page.locator("canvas").first).to_be_visible()
    wait_for_paint(page)
