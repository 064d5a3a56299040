"""The dashboard of a service that requires keys: sign-in, sign-out, and requests with the key."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from api_tests.support.browser import OpenPage, PageErrors
from api_tests.support.fake_service import Api
from touchstone.ledger.api_keys import KeyRequest


@pytest.fixture
def key(api_with_keys: Api) -> str:
    return api_with_keys.ledger.keys.create(KeyRequest(name="browser", tenant="acme")).text


@pytest.fixture
def page(api_with_keys: Api, open_page: OpenPage, page_errors: PageErrors) -> Page:
    """A page of a service that requires a key for every request of the page."""
    page_errors.allow("status of 401")
    page_errors.allow("503.*/readyz")
    return open_page(api_with_keys.origin)


def sign_in(page: Page, key: str) -> None:
    page.get_by_role("dialog", name="Sign in").get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


def test_key_is_asked_for_once_and_kept_for_the_tab(page: Page, key: str) -> None:
    page.goto("/#/models")
    expect(page.get_by_role("dialog", name="Sign in")).to_contain_text("This service needs an API key")
    sign_in(page, "ts_wrong")
    expect(page.get_by_role("dialog")).to_contain_text("The service refused that key")
    sign_in(page, key)
    expect(page.get_by_role("heading", name="fashion-mnist-cnn", exact=True)).to_be_visible()
    page.goto("/#/jobs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def test_sign_out_removes_the_key(page: Page, key: str) -> None:
    page.goto("/#/models")
    sign_in(page, key)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
    assert page.evaluate("() => JSON.stringify([sessionStorage, localStorage])").find(key) == -1


def test_key_never_appears_in_a_request_url(page: Page, key: str) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto("/#/new")
    sign_in(page, key)
    expect(page.get_by_role("heading", level=1)).to_have_text("Can this classifier be fooled?")
    assert urls
    assert not any(key in url for url in urls)


def test_late_401_after_sign_in_does_not_ask_for_a_key_again(page: Page, key: str) -> None:
    late: list[Route] = []

    def hold(route: Route) -> None:
        late.append(route)

    page.route("**/v1/models*", hold, times=1)
    page.goto("/#/new")
    sign_in(page, key)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert "authorization" not in late[0].request.headers
    late[0].continue_()
    expect(page.get_by_role("heading", level=1)).to_have_text("Can this classifier be fooled?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_signed_in_list_shows_and_follows_only_jobs_of_the_tenant(api_with_keys: Api, page: Page) -> None:
    keys = {
        tenant: api_with_keys.ledger.keys.create(KeyRequest(name="browser", tenant=tenant))
        for tenant in ("acme", "other")
    }
    page.goto("/#/jobs")
    with page.expect_response(lambda answer: answer.url.endswith("/v1/events") and answer.status == 200):
        sign_in(page, keys["acme"].text)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    for tenant in ("other", "acme"):  # shown because of the stream: the list is not loaded again
        api_with_keys.submit(headers={"Authorization": f"Bearer {keys[tenant].text}"})
    expect(page.locator("tr[data-id]")).to_have_count(1)
    expect(page.locator("tr[data-id]")).to_contain_text("succeeded")
    api_with_keys.ledger.keys.revoke(keys["acme"].key.id)
    page.reload()
    expect(page.get_by_role("dialog")).to_contain_text("The service refused that key")
