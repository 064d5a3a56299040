"""The webhook deliveries on the page of a job, and their replay."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from api_tests.support.browser import PHONE, OpenPage, PageErrors, axe
from api_tests.support.fake_service import Api, run_service
from api_tests.support.webhook_jobs import add_endpoint
from api_tests.support.webhook_receiver import Receiver, reply_with
from touchstone.settings import Settings


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that may send to loopback addresses."""
    home = tmp_path_factory.mktemp("api")
    with run_service(Settings(home=home, redis_url=valkey_server, outgoing_allow="127.0.0.1")) as api:
        yield api


def test_delivery_is_shown_and_replayed_by_keyboard(page: Page, api: Api, receiver: Receiver) -> None:
    receiver.next_actions = [reply_with(500)]
    job = api.run_job(webhook=receiver.url)
    receiver.wait()
    page.goto(f"/#/jobs/{job['id']}")
    card = page.locator("section", has=page.get_by_role("heading", name="Webhooks"))
    row = card.get_by_role("row", name=receiver.url)
    expect(row).to_contain_text(re.compile("pending1500, refused after .+in [1-6](\\.\\d)? s"))
    again = row.get_by_role("button", name="Send again")
    again.focus()
    page.keyboard.press("Enter")
    expect(card.get_by_role("status")).to_have_text("The delivery is being sent again.")
    expect(row).to_contain_text(re.compile("delivered2204 after .+ago–|delivered2204 after .+just now–"))
    expect(again).to_be_focused()
    assert len({message.id for message in receiver.wait(2)}) == 1


def test_job_without_webhook_shows_no_deliveries(page: Page, api: Api) -> None:
    with page.expect_response("**/v1/webhooks/deliveries*"):
        page.goto(f"/#/jobs/{api.run_job()['id']}")
    expect(page.get_by_role("heading", name="Provenance")).to_be_visible()
    expect(page.get_by_role("heading", name="Webhooks")).to_have_count(0)


def test_refused_replay_shows_its_reason(
    page: Page, api: Api, receiver: Receiver, page_errors: PageErrors
) -> None:
    page_errors.expect("409")
    endpoint = add_endpoint(api.ledger, receiver)
    job = api.run_job()
    receiver.wait()
    api.client.delete(f"/v1/webhooks/{endpoint.id}")
    page.goto(f"/#/jobs/{job['id']}")
    page.get_by_role("button", name=f"Send again to {receiver.url}").click()
    expect(page.get_by_role("alert")).to_contain_text("the endpoint was deleted")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_deliveries_card_is_accessible_and_does_not_overflow(
    open_page: OpenPage, api: Api, receiver: Receiver, page_errors: PageErrors, scheme: str
) -> None:
    page_errors.allow("/readyz")
    page = open_page(api.origin, **(PHONE if scheme == "dark" else {}), color_scheme=scheme)
    page.goto(f"/#/jobs/{api.run_job(webhook=receiver.url)['id']}")
    expect(page.get_by_role("heading", name="Webhooks")).to_be_visible()
    page.wait_for_timeout(300)
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
