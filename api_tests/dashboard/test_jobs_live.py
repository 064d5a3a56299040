"""The list of jobs while jobs are added, run and end; bulk actions; and text from users."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from playwright.sync_api import Locator, Page, expect

from api_tests.dashboard.finished_jobs import (
    HOSTILE_TEXT,
    expect_rows,
    finish_attack,
    finish_with_error,
    open_list,
    row_ids,
)
from api_tests.support.browser import PHONE, OpenPage, PageErrors, axe
from api_tests.support.fake_service import Api
from touchstone.ledger.records import Progress


@pytest.fixture(autouse=True)
def empty(api: Api, page_errors: PageErrors) -> None:
    """Begin without jobs; the fake worker sends no heartbeats, so the service is not ready."""
    page_errors.allow("readyz")
    with redis.Redis.from_url(str(api.settings.redis_url)) as client:
        client.flushdb()


def row(page: Page, job: str) -> Locator:
    return page.locator(f"tr[data-id='{job}']")


def submit_queued(api: Api, count: int, **fields: Any) -> list[str]:
    """Submit jobs while the worker is paused; newest first."""
    return [api.submit(wait=None, **fields).json()["id"] for _ in range(count)][::-1]


def test_empty_list_tells_what_to_do(page: Page) -> None:
    page.goto("/#/jobs")
    page.get_by_role("link", name="start a new job").click()
    expect(page).to_have_url("/#/new")
    page.goto("/#/jobs?status=failed")
    expect(page.get_by_role("heading", name="No matching jobs")).to_be_visible()
    page.locator(".empty").get_by_role("link", name="Clear filters").click()
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()


def test_row_is_updated_in_place_and_keeps_the_focus(page: Page, api: Api) -> None:
    with api.worker.pause():
        [job] = submit_queued(api, 1)
        open_list(page)
        page.keyboard.press("j")
        link = row(page, job).get_by_role("link")
        expect(link).to_be_focused()
        page.evaluate("window.kept = document.querySelector('tbody tr')")
        claimed = api.ledger.claim(job, "worker-1")
        assert claimed
        expect(row(page, job).locator(".badge")).to_have_text("running")
        api.ledger.report(job, claimed.claims, Progress(done=3, total=10))
        expect(row(page, job).get_by_role("progressbar")).to_have_js_property("value", 3)
        result = {
            "outcome": "success",
            "success": True,
            "original": {"name": "cat"},
            "adversarial": {"name": "dog"},
        }
        api.ledger.finish(job, claimed.claims, status="succeeded", result=result)
        expect(row(page, job)).to_contain_text("cat → dog")
        expect(link).to_be_focused()
        assert page.evaluate("window.kept === document.querySelector('tbody tr')")


def test_rows_appear_and_disappear_as_jobs_match_the_filter(page: Page, api: Api) -> None:
    with api.worker.pause():
        open_list(page, "/#/jobs?status=queued&method=pgd")
        [first] = submit_queued(api, 1)
        expect_rows(page, [first])
        submit_queued(api, 1, path="/v1/attacks/fgsm")
        [second] = submit_queued(api, 1)
        expect_rows(page, [second, first])
        api.client.post(f"/v1/jobs/{first}/cancel")
        expect_rows(page, [second])
        api.client.delete(f"/v1/jobs/{second}")
        expect(page.get_by_role("heading", name="No matching jobs")).to_be_visible()


def test_new_rows_wait_while_rows_are_selected(page: Page, api: Api) -> None:
    with api.worker.pause():
        old = submit_queued(api, 2)
        open_list(page)
        row(page, old[0]).get_by_role("checkbox").check()
        new = submit_queued(api, 2)
        expect(page.get_by_role("button", name="2 new jobs")).to_be_visible()
        assert row_ids(page) == old
        page.get_by_role("button", name="2 new jobs").click()
        expect_rows(page, new + old)


def test_selected_jobs_are_canceled_and_deleted_together(page: Page, api: Api) -> None:
    with api.worker.pause():
        jobs = submit_queued(api, 5)
        open_list(page)
        row(page, jobs[1]).get_by_role("checkbox").check()
        row(page, jobs[4]).get_by_role("checkbox").click(modifiers=["Shift"])
        expect(page.get_by_text("4 selected")).to_be_visible()
        # A job that has ended meanwhile does not prevent the others from being canceled.
        page.route(
            "**/v1/jobs/cancel",
            lambda route: (finish(api, jobs[4]), route.continue_()),
        )
        page.get_by_role("button", name="Cancel 4").click()
        expect(page.locator(".bulk-actions [role=status]")).to_have_text("3 canceled, 1 already ended.")
        page.get_by_role("checkbox", name="Select all").check()
        page.get_by_role("button", name="Delete 4").click()
        assert len(api.client.get("/v1/jobs").json()["items"]) == 5, "deleting takes a second press"
        page.get_by_role("button", name="Delete 4").click()
        expect(page.locator(".bulk-actions [role=status]")).to_have_text("4 deleted.")
        expect_rows(page, [jobs[0]])
        assert [job["id"] for job in api.client.get("/v1/jobs").json()["items"]] == [jobs[0]]


def finish(api: Api, job: str) -> None:
    claimed = api.ledger.claim(job, "worker-1")
    assert claimed
    api.ledger.finish(job, claimed.claims, status="succeeded", result={"success": True})


def test_rows_are_selected_and_opened_by_keyboard(page: Page, api: Api) -> None:
    with api.worker.with_behavior(finish_attack):
        jobs = [api.run_job()["id"] for _ in range(3)][::-1]
    open_list(page)
    for key in ("j", "x", "ArrowDown", "x"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Compare").click()
    expect(page).to_have_url(f"/#/compare?jobs={jobs[0]}%2C{jobs[1]}")
    page.go_back()
    expect_rows(page, jobs)
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"/#/jobs/{jobs[0]}")


def test_many_events_are_rendered_at_most_once_a_frame(page: Page, api: Api) -> None:
    with api.worker.pause():
        jobs = submit_queued(api, 30)
        open_list(page)
        page.evaluate(
            "window.renders = 0; new MutationObserver(() => renders++).observe("
            "document.querySelector('tbody'), {subtree: true, childList: true})"
        )
        claimed = [api.ledger.claim(job, "worker-1") for job in jobs]
        for done in range(1, 21):
            api.ledger.report_all(
                [(job.id, job.claims, Progress(done=done, total=20), None) for job in claimed if job]
            )
        expect(page.locator("progress[value='20']")).to_have_count(30)
        assert 0 < page.evaluate("renders") < 100


def test_user_supplied_text_is_never_rendered_as_markup(page: Page, api: Api) -> None:
    with api.worker.with_behavior(lambda work: finish_with_error(work, HOSTILE_TEXT)):
        bad = api.run_job()["id"]
    with api.worker.with_behavior(lambda work: finish_attack(work, name=HOSTILE_TEXT)):
        good = api.run_job()["id"]
    open_list(page)
    expect(row(page, bad)).to_contain_text(HOSTILE_TEXT)
    expect(row(page, good)).to_contain_text(f"{HOSTILE_TEXT} → class 2")
    page.goto(f"/#/jobs?method={HOSTILE_TEXT}&model={HOSTILE_TEXT}")
    expect(page.locator("select[name=method]")).to_have_value(HOSTILE_TEXT)
    page.goto(f"/#/compare?jobs={bad},{good}")
    expect(page.locator("thead")).to_contain_text(HOSTILE_TEXT)
    assert page.locator("main script, main img[src=x]").count() == 0


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE])
def test_jobs_and_compare_pages_are_accessible_and_do_not_overflow(
    open_page: OpenPage, api: Api, options: dict[str, Any]
) -> None:
    with api.worker.with_behavior(finish_with_error):
        api.run_job()
    with api.worker.with_behavior(finish_attack):
        jobs = [api.run_job()["id"] for _ in range(2)]
    page = open_list(open_page(api.origin, **options))
    page.locator("tbody input").first.check()
    page.get_by_label("Keys").click()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(f"/#/compare?jobs={','.join(jobs)}")
    expect(page.locator("tbody").first).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
