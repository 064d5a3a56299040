"""The browser renders pages, and every error in a page is noticed by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from api_tests.support.browser import PHONE, OpenPage, PageErrors, axe, take_picture, wait_for_pending_events
from api_tests.support.fake_service import Api

STRICT = {"Content-Security-Policy": "default-src 'self'"}
PAGE_ERRORS = {
    "inline script": (
        "<script>document.title = 'Run'</script>",
        r"CSP violation: script-src-elem forbids inline",
    ),
    "inline style": ("<p style='color: red'>Red</p>", r"CSP violation: style-src-attr forbids inline"),
    "console": ("<script src=/console.js></script>", r"console: logged \(.*/console.js:0\)"),
    "error": ("<script src=/error.js></script>", r"uncaught: .*thrown"),
    "rejection": ("<script src=/rejection.js></script>", r"uncaught: .*rejected"),
    "not found": ("<img alt=Nothing src=/nothing.png>", r"console: .* 404 .*/nothing.png"),
    "server error": ("<img alt=Nothing src=/broken.png>", r"^500: .*/broken.png"),
    "no connection": ("<img alt=Nothing src=/refused.png>", r"request failed: net::ERR_CONNECTION_REFUSED"),
    "another origin": (
        "<img alt=Nothing src=http://127.0.0.1:9/a.png>",
        r"another origin: http://127.0.0.1:9/a",
    ),
}
FILES = {
    "dark.css": "@media (prefers-color-scheme: dark) { body { background: black } }",
    "console.js": "console.error('logged')",
    "error.js": "throw new Error('thrown')",
    "rejection.js": "Promise.reject(new Error('rejected'))",
}


def show(page: Page, body: str, headers: dict[str, str] = STRICT) -> None:
    """Load a document with this body, as if the service had served it."""
    head = '<!doctype html><html lang="en"><title>Made up</title>'

    def answer(route: Route) -> None:
        path = route.request.url.partition("//")[2].partition("/")[2]
        if path in FILES:
            kind = "text/css" if path.endswith("css") else "text/javascript"
            route.fulfill(body=FILES[path], content_type=kind)
        elif path == "made-up":
            document = f"{head}<main><h1>Made up</h1>{body}</main></html>"
            route.fulfill(body=document, headers={**headers, "Content-Type": "text/html"})
        elif path == "refused.png":
            route.abort("connectionrefused")
        else:
            route.fulfill(status=500 if path == "broken.png" else 404)

    page.route("**/*", answer)
    page.goto("/made-up")
    wait_for_pending_events(page)


def test_docs_page_is_rendered(page: Page, tmp_path: Path) -> None:
    page.goto("/docs")
    expect(page.get_by_role("heading", name="Touchstone")).to_be_visible()
    expect(page.locator(".opblock").first).to_be_visible()
    with Image.open(take_picture(page, "docs", tmp_path)) as picture:
        assert picture.size == (1440, 900)
        assert len(picture.convert("L").getcolors() or []) > 50, "text has many greys"


def test_phone_emulation_has_size_pixel_ratio_and_dark_scheme(
    open_page: OpenPage, api: Api, tmp_path: Path
) -> None:
    page = open_page(api.origin, **PHONE, color_scheme="dark")
    show(page, "<meta name=viewport content=width=device-width><link rel=stylesheet href=/dark.css>")
    with Image.open(take_picture(page, "phone", tmp_path)) as picture:
        assert picture.size == (780, 1688)
        assert picture.convert("RGB").getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize(("body", "pattern"), PAGE_ERRORS.values(), ids=PAGE_ERRORS)
def test_page_errors_are_recorded(page: Page, page_errors: PageErrors, body: str, pattern: str) -> None:
    headers = {} if "another" in pattern else STRICT
    show(page, body, headers)
    assert page_errors.list_unexpected() == page_errors.seen != []
    page_errors.expect(pattern)
    page_errors.allow("^console: ")
    assert page_errors.list_unexpected() == []


def test_expected_error_that_does_not_occur_is_reported(page: Page) -> None:
    errors = PageErrors()
    errors.expect("a storm")
    assert errors.list_unexpected() == ["expected, but did not occur: a storm"]


def test_clean_page_has_no_errors(page: Page, page_errors: PageErrors) -> None:
    show(page, "<p>No errors.</p>")
    assert axe(page) == []
    assert page_errors.seen == []


def test_axe_finds_violations_under_the_strictest_csp(page: Page, page_errors: PageErrors) -> None:
    policy = "default-src 'none'; img-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
    show(page, "<input><img src=/a.png>", {"Content-Security-Policy": policy})
    page_errors.expect("404 .*/a.png")
    assert [line.partition(":")[0] for line in axe(page)] == ["critical image-alt", "critical label"]
    assert len(axe(page, "img")) == 1


def test_page_fetches_from_a_service_with_a_real_worker(live_page: Page) -> None:
    live_page.goto("/docs")
    answer = live_page.evaluate("async () => (await fetch('/v1/attacks')).json()")
    assert answer["items"]
