"""Late responses: out of order, or after the page was left or the sign-in dismissed."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from api_tests.dashboard.finished_jobs import open_list
from api_tests.support.browser import HeldRequests, OpenPage, PageErrors
from api_tests.support.fake_service import Api

TIMERS = """
window.timers = new Set();
const [start, stop] = [setInterval, clearInterval];
window.setInterval = (...options) => { const timer = start(...options); timers.add(timer); return timer; };
window.clearInterval = (timer) => { timers.delete(timer); stop(timer); };
"""
STREAMS = """
window.streams = [];
const original = fetch;
window.fetch = (path, options) => {
  if (path === "/v1/events") streams.push(options.signal);
  return original(path, options);
};
"""
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
SETTLE_MS = 300  # milliseconds in which an unwanted change would appear


@pytest.fixture(autouse=True)
def allow_missing_worker(page_errors: PageErrors) -> None:
    """The fake worker sends no heartbeats, so the frame reports that the service is not ready."""
    page_errors.allow("readyz")


def leave(page: Page) -> None:
    """Go to a page that sends no requests."""
    page.evaluate("location.hash = '#/nowhere'")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")


def test_late_failure_of_an_older_request_does_not_replace_the_list(
    page: Page, api: Api, page_errors: PageErrors
) -> None:
    page_errors.expect("500")
    job = api.run_job()["id"]
    first = HeldRequests(page, "**/v1/jobs?*")
    open_list(page)
    with page.expect_response(lambda answer: answer.status == 500):
        first.take().fulfill(status=500, json={"title": "Too late"})
    page.wait_for_timeout(SETTLE_MS)
    expect(page.get_by_text("Too late")).to_have_count(0)
    assert job in page.locator("tbody").inner_html()


def test_late_answer_of_an_older_request_does_not_undo_the_job_state(page: Page, api: Api) -> None:
    with api.worker.pause():
        job = api.submit(wait=None).json()["id"]
        page.goto(f"/#/jobs/{job}")
        expect(page.get_by_text("Queued: ")).to_be_visible()
        held = HeldRequests(page, f"**/v1/jobs/{job}")
        old = held.take()
        queued = api.client.get(f"/v1/jobs/{job}").text
        claimed = api.ledger.claim(job, "worker-1")
        assert claimed
        expect(page.locator(".head .badge")).to_have_text("running")
        old.fulfill(body=queued, content_type="application/json")
        page.wait_for_timeout(SETTLE_MS)
        assert page.locator(".head .badge").inner_text() == "running"
        api.ledger.finish(job, claimed.claims, status="succeeded", result={"success": True})


@pytest.mark.parametrize("name", ["Run again and compare", "Delete"])
def test_late_answer_does_not_navigate_after_the_page_was_left(page: Page, api: Api, name: str) -> None:
    job = api.run_job()["id"]
    page.goto(f"/#/jobs/{job}")
    expect(page.locator("canvas").first).to_be_visible()
    held = HeldRequests(page, re.compile(f"/v1/jobs/{job}(/rerun)?$"))
    page.get_by_role("button", name=name).click()
    if name == "Delete":
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    action = held.take()
    leave(page)
    with page.expect_response(action.request.url):
        action.continue_()
    page.wait_for_timeout(SETTLE_MS)
    assert page.url.endswith("#/nowhere")


def test_page_left_before_it_loaded_starts_no_timers(page: Page, api: Api) -> None:
    with api.worker.pause():
        job = api.submit(wait=None).json()["id"]
        page.add_init_script(TIMERS)
        models = HeldRequests(page, "**/v1/models")
        page.goto(f"/#/jobs/{job}")
        late = models.take()
        leave(page)
        with page.expect_response("**/v1/models"):
            late.continue_()
        page.wait_for_timeout(SETTLE_MS)
        assert page.evaluate("timers.size") == 1, "only the timer of the frame"


def test_list_left_while_hidden_opens_no_stream(page: Page) -> None:
    page.add_init_script(STREAMS)
    open_list(page)
    page.evaluate(HIDE, True)
    page.wait_for_function("streams.every((signal) => signal.aborted)")
    leave(page)
    page.evaluate(HIDE, False)
    page.wait_for_timeout(SETTLE_MS)
    assert page.evaluate("streams.filter((signal) => !signal.aborted).length") == 0


def test_page_does_not_overwrite_the_address_of_a_link_just_followed(page: Page) -> None:
    page.goto("/#/models")
    expect(page.get_by_role("article").first).to_be_visible()
    page.evaluate("""async () => {
        const {src} = document.querySelector("script[type=module]");
        const {replaceRoute} = await import(src.replace("main", "routes"));
        location.hash = "#/nowhere";
        replaceRoute("models", null, {q: "late"});
    }""")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")


def test_field_change_during_image_load_keeps_the_idempotency_key(page: Page) -> None:
    sample = HeldRequests(page, "**/samples/*.png")
    page.goto("/#/new")
    image = sample.take()
    page.get_by_role("button", name="Run").click()
    page.get_by_label("Steps").fill("3")
    with page.expect_request(lambda request: request.method == "POST") as sent:
        image.continue_()
    assert re.fullmatch(r"\d+(-\d+){3}", sent.value.headers["idempotency-key"])


def test_late_failure_of_a_sample_does_not_affect_the_next_sample(
    page: Page, page_errors: PageErrors
) -> None:
    page_errors.expect("500")
    page.goto("/#/new")
    expect(page.locator(".preview")).to_be_visible()
    samples = HeldRequests(page, re.compile(r"/samples/\w+\.png$"))
    page.get_by_label("Bag").check()
    bag = samples.take()
    page.get_by_label("Pullover").check()
    expect(page.locator(".view")).to_contain_text("pullover")
    with page.expect_response(lambda answer: answer.status == 500):
        bag.fulfill(status=500, json={"title": "Too late"})
    page.wait_for_timeout(SETTLE_MS)
    expect(page.get_by_text("Too late")).to_have_count(0)


def test_model_registered_since_the_list_was_cached_can_be_chosen(page: Page, api: Api) -> None:
    known = api.client.get("/v1/models").json()
    before = {**known, "items": [model for model in known["items"] if model["id"] != "fashion-mnist-cnn"]}
    page.route("**/v1/models", lambda route: route.fulfill(json=before), times=1)
    page.goto("/#/new?model=fashion-mnist-cnn")
    expect(page.locator("#model")).to_have_value("fashion-mnist-cnn")


def test_failed_actions_can_be_tried_again(page: Page, api: Api, page_errors: PageErrors) -> None:
    page_errors.expect("ERR_CONNECTION_REFUSED")
    with api.worker.pause():
        job = api.submit(wait=None).json()["id"]
        page.goto(f"/#/jobs/{job}")
        cancel = page.get_by_role("button", name="Cancel")
        page.route("**/cancel", lambda route: route.abort("connectionrefused"), times=1)
        cancel.click()
        expect(page.get_by_role("alert").filter(has_text="does not respond")).to_be_visible()
        cancel.click()
        expect(page.get_by_role("heading", name="Job canceled")).to_be_visible()
    page.route("**/artifacts/*", lambda route: route.abort("connectionrefused"), times=1)
    page.get_by_role("link", name="original.png").click()
    expect(page.get_by_role("alert").filter(has_text="does not respond")).to_be_visible()


def test_late_answer_does_not_undo_a_replayed_delivery(page: Page, api: Api) -> None:
    one = {"id": "d1", "url": "http://there/", "attempts": [], "next_attempt_at": None}
    polls = HeldRequests(page, "**/v1/webhooks/deliveries?*", times=4)
    page.route("**/replay", lambda route: route.fulfill(json={**one, "status": "delivered"}))

    def respond(poll: Route, status: str) -> None:
        poll.fulfill(json={"items": [{**one, "status": status}], "cursor": None})

    page.goto(f"/#/jobs/{api.run_job()['id']}")
    respond(polls.take(), "pending")
    badge = page.locator(".webhooks .badge")
    expect(badge).to_have_text("pending")
    late = polls.take()
    page.get_by_role("button", name="Send again").click()
    expect(badge).to_have_text("delivered")
    respond(polls.take(), "delivered")
    respond(late, "pending")
    page.wait_for_timeout(SETTLE_MS)
    assert badge.inner_text() == "delivered"


def test_dismissed_sign_in_is_not_shown_again_by_background_requests(
    api_with_keys: Api, open_page: OpenPage, page_errors: PageErrors
) -> None:
    page_errors.allow("status of 401")
    page = open_page(api_with_keys.origin)
    operations = HeldRequests(page, "**/v1/operations")
    page.goto("/#/jobs")
    page.get_by_role("dialog").get_by_label("API key").fill("never submitted")
    late = operations.take()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    with page.expect_response("**/v1/operations"):
        late.continue_()
    page.wait_for_timeout(1500)  # streams are tried again after half a second
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
    page.locator("nav a[data-page=models]").click()
    expect(page.get_by_role("dialog")).to_have_count(1)
