"""The comparison of jobs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from api_tests.dashboard.finished_jobs import finish_attack, finish_certificate
from api_tests.support.browser import PageErrors
from api_tests.support.fake_service import Api


@pytest.fixture(autouse=True)
def allow_missing_worker(page_errors: PageErrors) -> None:
    page_errors.allow("readyz")


def comparison_row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def test_differing_parameters_are_marked_and_equal_ones_can_be_hidden(page: Page, api: Api) -> None:
    with api.worker.with_behavior(finish_attack):
        ids = [api.run_job(eps=eps, norm="linf")["id"] for eps in ("4/255", "8/255")]
    page.goto(f"/#/compare?jobs={','.join(ids)}")
    expect(comparison_row(page, "Eps").get_by_role("cell")).to_have_text(["4/255", "8/255"])
    expect(comparison_row(page, "Eps")).to_have_class("differs")
    expect(comparison_row(page, "Norm")).to_have_class("same")
    expect(comparison_row(page, "Norm").get_by_role("cell")).to_have_text(["L∞", "L∞"])
    expect(comparison_row(page, "Early stop").get_by_role("cell")).to_have_text(["yes", "yes"])
    page.get_by_label("Only differences").check()
    expect(comparison_row(page, "Norm")).to_be_hidden()
    expect(comparison_row(page, "Eps")).to_be_visible()
    images = page.locator("thead img")
    expect(images).to_have_count(2)
    page.wait_for_function(
        "[...document.querySelectorAll('thead img')].every((image) => image.naturalWidth === 9)"
    )


def test_best_is_marked_only_among_comparable_jobs(page: Page, api: Api) -> None:
    with api.worker.with_behavior(lambda work: finish_attack(work, size=1.0)):
        small = api.run_job()["id"]
    with api.worker.with_behavior(lambda work: finish_attack(work, size=2.0)):
        large = api.run_job()["id"]
    with api.worker.with_behavior(lambda work: finish_attack(work, success=False, size=0.5)):
        failed = api.run_job()["id"]
    page.goto(f"/#/compare?jobs={large},{small}")
    expect(comparison_row(page, "L2").get_by_role("cell")).to_have_text(["2", "1best"])
    expect(comparison_row(page, "L∞").get_by_role("cell")).to_have_text(["8/255", "8/255"])
    page.goto(f"/#/compare?jobs={large},{small},{failed}")
    expect(comparison_row(page, "L2").get_by_role("cell")).to_have_text(["2", "1", "0.5"])


def test_certified_radii_are_drawn_on_one_scale(page: Page, api: Api) -> None:
    ids = []
    for radius in (0.25, 0.5):
        with api.worker.with_behavior(lambda work, radius=radius: finish_certificate(work, radius)):
            ids.append(api.run_job(path="/v1/certificates/smoothing")["id"])
    page.goto(f"/#/compare?jobs={','.join(ids)}")
    cells = comparison_row(page, "Certified radius").get_by_role("cell")
    expect(cells).to_have_text(["L2 0.25", "L2 0.5best"])
    widths = cells.locator(".gauge > div").evaluate_all("(bars) => bars.map((bar) => bar.style.width)")
    assert widths == ["50%", "100%"]


def test_jobs_are_added_and_removed_and_unknown_ids_are_reported(
    page: Page, api: Api, page_errors: PageErrors
) -> None:
    page_errors.expect("console: .* 404 .*")
    with api.worker.with_behavior(finish_attack):
        one, two = (api.run_job()["id"] for _ in range(2))
    page.goto(f"/#/compare?jobs={one}")
    page.get_by_label("Id of another job").fill(f"http://127.0.0.1:8000/#/jobs/{two}")
    page.get_by_role("button", name="Add a job").click()
    expect(page).to_have_url(f"/#/compare?jobs={one}%2C{two}")
    expect(page.locator("thead th")).to_have_count(2)
    page.goto(f"/#/compare?jobs={one},{'0' * 32}")
    expect(page.locator("thead th").nth(1)).to_contain_text("there is no job")
    page.get_by_label("Remove job 00000000").click()
    expect(page.locator("thead th")).to_have_count(1)


def test_late_answer_does_not_undo_a_finished_job(page: Page, api: Api) -> None:
    """The page reads its jobs again once the stream is live; here that response is outdated."""
    with api.worker.pause():
        job = api.submit(wait=None).json()["id"]
        waiting = api.client.get(f"/v1/jobs/{job}").text
        reads: list[Route] = []

        def read(route: Route) -> None:
            reads.append(route)
            if len(reads) != 2:
                route.fulfill(content_type="application/json", body=waiting)

        page.route(f"**/v1/jobs/{job}", read)
        page.goto(f"/#/compare?jobs={job}")
        expect(page.locator("thead .badge")).to_have_text("queued")
        while len(reads) < 2:
            page.wait_for_timeout(20)
    expect(page.locator("thead .badge").first).to_have_text("succeeded")
    with page.expect_response(f"**/v1/jobs/{job}"):
        reads[1].fulfill(content_type="application/json", body=waiting)
    page.wait_for_timeout(200)
    expect(page.locator("thead .badge").first).to_have_text("succeeded")


def test_queued_job_is_updated_until_it_ends(page: Page, api: Api) -> None:
    with api.worker.pause():
        job = api.submit(wait=None).json()["id"]
        page.goto(f"/#/compare?jobs={job}")
        expect(page.locator("thead .badge")).to_have_text("queued")
    expect(page.locator("thead .badge").first).to_have_text("succeeded")
