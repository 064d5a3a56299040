"""The frame around the pages: navigation, themes, and a service that does not respond."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from api_tests.support.browser import DESKTOP, PHONE, OpenPage, PageErrors, axe
from api_tests.support.fake_service import Api

PAGES = {
    "new": "Can this classifier be fooled?",
    "jobs": "Jobs",
    "models": "Models",
    "operations": "Operations",
}


@pytest.fixture(autouse=True)
def allow_missing_worker(page_errors: PageErrors) -> None:
    """The fake worker sends no heartbeats, so the frame reports that the service is not ready."""
    page_errors.allow("503.*/readyz")


def test_every_page_has_a_title_and_a_navigation_link(page: Page) -> None:
    page.goto("/")
    for name, heading in PAGES.items():
        page.locator(f"nav a[data-page={name}]").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(page.locator("nav a[aria-current=page]")).to_have_count(1)
        assert page.title().endswith("· Touchstone")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(PAGES["models"])


def test_unknown_address_shows_not_found(page: Page) -> None:
    page.goto("/#/nowhere")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")


def test_unreachable_service_is_reported_and_can_be_retried(page: Page, page_errors: PageErrors) -> None:
    page_errors.allow("ERR_CONNECTION_REFUSED")
    page.goto("/#/operations")
    page.context.route("**/v1/models*", lambda route: route.abort("connectionrefused"))
    page.locator("nav a[data-page=models]").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not respond")
    page.context.unroute("**/v1/models*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Models")


def test_chosen_theme_survives_a_reload(page: Page) -> None:
    page.goto("/#/models")
    button = page.get_by_role("button", name="Theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert len(set(seen)) == 2
    button.click()
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_every_page_is_accessible_and_does_not_overflow(
    open_page: OpenPage, api: Api, scheme: str, size: str
) -> None:
    page = open_page(api.origin, **(PHONE if size == "phone" else DESKTOP), color_scheme=scheme)
    api.run_job()
    for name, heading in PAGES.items():
        page.goto(f"/#/{name}")
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        page.wait_for_load_state("networkidle") if name == "new" else page.wait_for_timeout(300)
        assert axe(page) == [], name
        overflow = page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0, name
