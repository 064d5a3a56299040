"""A job's page by the state and outcome of the job, as a fake worker makes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from api_tests.dashboard.finished_jobs import prediction_of
from api_tests.support.browser import PageErrors, open_job
from api_tests.support.fake_service import Api, FakeJob, fail


def test_queued_job_shows_its_position_and_then_its_result(page: Page, api: Api) -> None:
    with api.worker.pause():
        ahead = api.submit(wait=None).json()
        job = api.submit(wait=None).json()
        open_job(page, job)
        expect(page.get_by_text(re.compile("Queued: [12] jobs? ahead"))).to_be_visible()
        api.client.post(f"/v1/jobs/{ahead['id']}/cancel")
    expect(page.locator(".sentence")).to_contain_text("Fooled")
    expect(page.locator("canvas")).to_have_count(3)


def test_failed_job_shows_its_error(page: Page, api: Api) -> None:
    with api.worker.with_behavior(fail):
        open_job(page, api.run_job())
    expect(page.locator(".failure")).to_contain_text("the model answered NaN")
    expect(page.locator(".failure")).to_contain_text("non_finite_output")


def test_success_lost_by_rounding_is_explained(page: Page, api: Api) -> None:
    def lose_by_rounding(work: FakeJob) -> None:
        verdict = {"outcome": "failure", "success": False, "success_float": True}
        work.finish(status="succeeded", result=verdict)

    with api.worker.with_behavior(lose_by_rounding):
        open_job(page, api.run_job())
    expect(page.locator(".sentence")).to_contain_text("Robust: no adversarial example found within L∞ 8/255")
    expect(page.get_by_text("was adversarial; rounded to 8 bits, it no longer is")).to_be_visible()


def show_attack_result(page: Page, api: Api, **result: Any) -> Locator:
    """The card with the sentence of an attack that ended with this result."""
    known = {"outcome": "failure", "success": False, "original": prediction_of(1, 0.9)}

    def finish(work: FakeJob) -> None:
        work.finish(status="succeeded", result={**known, "adversarial": prediction_of(1, 0.9), **result})

    with api.worker.with_behavior(finish):
        open_job(page, api.run_job())
    return page.get_by_role("region", name="Result")


def test_each_diagnostic_is_explained_in_a_sentence(page: Page, api: Api) -> None:
    text = (Path(__file__).parents[2] / "docs/attacks.md").read_text().partition("## Diagnostics")[2]
    codes = re.findall(r"^\| `(\w+)` \|", text.partition("## Parameters")[0], re.MULTILINE)
    assert len(codes) >= 8
    card = show_attack_result(page, api, diagnostics=[*codes, "unheard_of"], stopped_by="deadline_exceeded")
    expect(card.get_by_text("unheard_of")).to_be_visible()
    expect(card.get_by_text("the best that it had found until then")).to_be_visible()
    hints = card.locator(".hint").all_inner_texts()
    assert len(hints) == len(codes) + 3
    assert not set(codes) & set(hints)


def test_image_that_could_not_be_attacked_is_not_called_robust(page: Page, api: Api) -> None:
    card = show_attack_result(page, api, diagnostics=["below_one_level"])
    expect(card.locator(".sentence")).to_contain_text("Not attacked")
    expect(page.locator(".head")).to_contain_text("not attacked")


def test_target_that_the_model_predicted_already_is_said(page: Page, api: Api) -> None:
    card = show_attack_result(page, api, outcome="already_at_target", success=True)
    expect(card.locator(".sentence")).to_contain_text("At its target: the model predicts")


def test_job_is_deleted_only_after_confirmation(page: Page, api: Api) -> None:
    job = api.run_job()
    open_job(page, job)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep").click()
    assert api.client.get(f"/v1/jobs/{job['id']}").status_code == 200
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("#/jobs$"))
    assert api.client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_unknown_job_shows_no_such_job(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect("404")
    page.goto("/#/jobs/0123456789abcdef0123456789abcdef")
    expect(page.get_by_role("heading", name="No such job")).to_be_visible()
