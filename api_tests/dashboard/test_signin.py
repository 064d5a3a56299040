"""The dashboard where keys are needed: the key of the sign-in opens everything, streams included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import OpenPage, Troubles
from playwright.sync_api import expect
from serving import Api, serving

from touchstone.jobs.keys import KeyRequest
from touchstone.settings import Settings


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    with serving(settings.model_copy(update={"require_keys": True})) as api:
        yield api


def test_a_key_opens_the_pages_of_its_tenant_and_follows_its_jobs(
    guarded: Api, open_page: OpenPage, troubles: Troubles
) -> None:
    troubles.allow("status of 401")
    troubles.allow("503.*/readyz")
    keys = {
        tenant: guarded.ledger.keys.create(KeyRequest(name="browser", tenant=tenant))
        for tenant in ("acme", "other")
    }
    page = open_page(guarded.origin)
    page.goto("/#/jobs")
    dialog = page.get_by_role("dialog", name="Sign in")
    dialog.get_by_label("API key").fill("ts_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("The service refused that key")
    page.get_by_label("API key").fill(keys["acme"].text)
    with page.expect_response(lambda answer: answer.url.endswith("/v1/events") and answer.status == 200):
        page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    for tenant in ("other", "acme"):  # told by the stream, for nobody loads the list again
        guarded.submit(headers={"Authorization": f"Bearer {keys[tenant].text}"})
    expect(page.locator("tr[data-id]")).to_have_count(1)
    expect(page.locator("tr[data-id]")).to_contain_text("succeeded")
    guarded.ledger.keys.revoke(keys["acme"].key.id)
    page.reload()
    expect(page.get_by_role("dialog")).to_contain_text("The service refused that key")
