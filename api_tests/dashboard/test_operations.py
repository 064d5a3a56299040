"""The operations page: the figures of the API, polled only while the page is visible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from api_tests.support.browser import PHONE, HeldRequests, OpenPage, PageErrors, axe
from api_tests.support.fake_service import Api, fail
from touchstone.models import zoo

CNN = zoo.find_manifest("fashion-mnist-cnn")
INFO = {
    "host": "gpu1",
    "pid": 4711,
    "device": "cuda:0",
    "running": 3,
    "batch_rows": {"buckets": {"1": 2, "2": 2, "4": 10, "8": 18, "+Inf": 20}, "sum": 150.0, "count": 20},
    "step_seconds": {"buckets": {"0.01": 15, "0.02": 19, "+Inf": 20}, "sum": 0.2, "count": 20},
    "queries": {"forward": 1500, "backward": 700},
    "resident_models": [{"id": CNN.id, "digest": CNN.digest, "bytes": 1_543_656}],
}


COUNT_POLLS = """
const original = fetch;
window.polls = 0;
window.fetch = (path, ...rest) => { polls += path === "/v1/operations"; return original(path, ...rest); };
"""


@pytest.fixture(autouse=True)
def worker(api: Api) -> Iterator[None]:
    """A live worker."""
    api.ledger.workers.heartbeat("gpu1-4711", INFO)
    yield
    api.ledger.workers.remove("gpu1-4711")


def tile_value(page: Page, name: str) -> Locator:
    """The number on a tile."""
    return page.locator(".tiles .card", has=page.get_by_role("heading", name=name)).locator("strong")


def hide(page: Page, hidden: bool) -> None:
    """Make the page believe that it is hidden or visible."""
    page.evaluate(
        "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def answer_with(page: Page, *each: dict[str, Any]) -> list[int]:
    """Respond with these figures one after another, then always the last; returns a growing list of polls."""
    polls: list[int] = []

    def answer(route: Route) -> None:
        polls.append(len(polls))
        route.fulfill(json=each[min(len(polls), len(each)) - 1])

    page.route("**/v1/operations", answer)
    return polls


def count_polls_in_ten_seconds(page: Page) -> int:
    """How often the page polls while its clock advances by ten seconds."""
    before: int = page.evaluate("polls")
    for _ in range(5):
        page.clock.run_for(2000)
        page.wait_for_timeout(20)
    return int(page.evaluate("polls")) - before


def wait_for_polls(page: Page) -> None:
    """Wait until the page polls twice, so that the first response has arrived."""
    before = page.evaluate("polls")
    while page.evaluate("polls") < before + 2:
        count_polls_in_ten_seconds(page)


def operations_at(api: Api, second: int, forward: int, backward: int = 0) -> dict[str, Any]:
    """The API's figures with one worker, whose heartbeat was at this second."""
    answer: dict[str, Any] = api.client.get("/v1/operations").json()
    queries = {"forward": forward, "backward": backward}
    worker = {**INFO, "id": "one", "seen_at": f"2026-11-22T09:30:{second:02}Z", "queries": queries}
    return answer | {"workers": [worker | {"models": []}]}


def test_operations_page_shows_the_figures_of_the_api(page: Page, api: Api) -> None:
    api.run_job()
    with api.worker.with_behavior(fail):
        api.run_job()
    with api.worker.pause():
        queued = api.submit(wait=None).json()["id"]
        figures = api.client.get("/v1/operations").json()
        page.goto("/#/operations")
        expect(tile_value(page, "Jobs queued")).to_have_text(str(figures["queue"]["depth"]))
        expect(tile_value(page, "Workers alive")).to_have_text("1")
        for status, n in figures["jobs"].items():
            link = page.locator(f'a[href="#/jobs?status={status}"]')
            expect(link).to_have_text(f"{n}{status}")
        api.ledger.cancel(queued)
    worker = page.get_by_role("article")
    for text in ("gpu1-4711", "gpu1, process 4711", "cuda:0", "1,500 forward, 700 backward", "1.5 MB"):
        expect(worker).to_contain_text(text)
    expect(worker).to_contain_text("p50 ≤ 4, p90 ≤ 8, mean 7.5")
    rows = worker.get_by_role("img", name="Rows per pass")
    expect(rows).to_have_attribute("aria-label", "Rows per pass. ≤ 1: 2, ≤ 2: 0, ≤ 4: 8, ≤ 8: 8, > 8: 2")
    seconds = worker.get_by_role("img", name="Time per pass")
    expect(seconds).to_have_attribute("aria-label", "Time per pass. ≤ 10 ms: 15, ≤ 20 ms: 4, > 20 ms: 1")


def test_page_without_workers_tells_how_to_start_one(page: Page, api: Api, page_errors: PageErrors) -> None:
    page_errors.expect("^503: .*/readyz$")
    page_errors.allow("^console: .* 503 .*/readyz")
    api.ledger.workers.remove("gpu1-4711")
    page.goto("/#/operations")
    expect(page.get_by_role("heading", name="No worker is alive")).to_be_visible()
    expect(page.locator(".empty code")).to_have_text(["touchstone up", "python -m workers"])


def test_query_rates_are_computed_between_two_heartbeats(page: Page, api: Api) -> None:
    page.clock.install()
    polls = answer_with(
        page, operations_at(api, 10, 1000), operations_at(api, 10, 1000), operations_at(api, 14, 1200, 40)
    )
    page.goto("/#/operations")
    expect(tile_value(page, "Queries per second")).to_have_text("–")
    while len(polls) < 3:
        page.clock.run_for(2000)
        page.wait_for_timeout(50)
    expect(tile_value(page, "Queries per second")).to_have_text("60")
    expect(page.get_by_role("article")).to_contain_text("50 forward, 10 backward")
    expect(page.get_by_role("img", name="Queries per second: 60, at most 60")).to_be_visible()


def test_polling_stops_while_the_page_is_hidden_paused_or_left(page: Page, api: Api) -> None:
    page.clock.install()
    page.add_init_script(COUNT_POLLS)
    answer_with(page, operations_at(api, 10, 0))
    page.goto("/#/operations")
    expect(page.get_by_role("article")).to_be_visible()
    wait_for_polls(page)
    hide(page, True)
    assert count_polls_in_ten_seconds(page) == 0
    hide(page, False)
    wait_for_polls(page)
    page.get_by_role("button", name="Pause").click()
    assert count_polls_in_ten_seconds(page) == 0
    page.get_by_role("button", name="Resume").click()
    wait_for_polls(page)
    page.goto("/#/models")
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    assert count_polls_in_ten_seconds(page) == 0


def test_answer_arriving_after_the_pause_is_not_shown(page: Page, api: Api) -> None:
    page.clock.install()
    answer_with(page, operations_at(api, 10, 5))
    page.goto("/#/operations")
    expect(page.get_by_role("article")).to_contain_text("5 forward")
    held = HeldRequests(page, "**/v1/operations")
    page.clock.run_for(2000)
    late = held.take()
    page.get_by_role("button", name="Pause").click()
    with page.expect_response("**/v1/operations"):
        late.fulfill(json=operations_at(api, 14, 413))
    page.wait_for_timeout(200)
    expect(page.get_by_role("article")).to_contain_text("5 forward")
    answer_with(page, operations_at(api, 16, 707))
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("article")).to_contain_text("707 forward")


def test_link_keeps_the_focus_while_figures_change(page: Page, api: Api) -> None:
    page.clock.install()
    answer_with(page, operations_at(api, 10, 0), operations_at(api, 12, 400))
    page.goto("/#/operations")
    link = page.locator('a[href="#/jobs?status=running"]')
    link.focus()
    page.clock.run_for(2000)
    expect(tile_value(page, "Queries per second")).to_have_text("200")
    expect(link).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_operations_page_is_accessible_and_does_not_overflow_on_a_phone(
    open_page: OpenPage, api: Api, scheme: str
) -> None:
    page = open_page(api.origin, **PHONE, color_scheme=scheme)
    answer_with(page, operations_at(api, 10, 0))
    page.goto("/#/operations")
    expect(page.get_by_role("article")).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
