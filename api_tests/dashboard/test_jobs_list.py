"""The list of jobs: filters, URL, counts and pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from playwright.sync_api import Page, expect

from api_tests.dashboard.finished_jobs import expect_rows, finish_by_kind, open_list
from api_tests.support.browser import PageErrors
from api_tests.support.fake_service import Api, run_service
from touchstone.models import zoo
from touchstone.settings import Settings

Job = dict[str, Any]
MODELS = list(zoo.manifests())[:2]
METHODS = ("attacks/pgd", "attacks/fgsm", "certificates/smoothing", "predictions")


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with a lease so long that claimed jobs stay running during the tests."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    settings = Settings(home=tmp_path_factory.mktemp("list"), redis_url=valkey_server, lease=600)
    with run_service(settings) as api:
        yield api


@pytest.fixture(autouse=True)
def allow_missing_worker(page_errors: PageErrors) -> None:
    """The fake worker sends no heartbeats, so the frame reports that the service is not ready."""
    page_errors.allow("readyz")


@pytest.fixture(scope="module")
def jobs(api: Api) -> Iterator[list[Job]]:
    """Two hundred jobs of all kinds in all states, newest first, over more than two seconds."""

    def submit(n: int) -> str:
        fields = {"model": MODELS[n // 4 % 2], "seed": str(n)}
        return str(api.submit(f"/v1/{METHODS[n % 4]}", wait=None, **fields).json()["id"])

    with api.worker.with_behavior(finish_by_kind):
        for n in range(93):
            submit(n)
        time.sleep(2.1)
        ids = [submit(n) for n in range(93, 186)]
        while not api.client.get(f"/v1/jobs/{ids[-1]}").json().get("finished_at"):
            time.sleep(0.05)
        with api.worker.pause():
            waiting = [submit(n) for n in range(186, 200)]
            for job in waiting[:4]:
                api.ledger.claim(job, "worker-1")
            for job in waiting[4:8]:
                api.client.post(f"/v1/jobs/{job}/cancel")
            yield list_jobs(api)
            with redis.Redis.from_url(str(api.settings.redis_url)) as client:
                client.flushdb()


def list_jobs(api: Api) -> list[Job]:
    """All jobs, newest first."""
    found: list[Job] = []
    cursor: str | None = ""
    while cursor is not None:
        items, cursor = list_page(api, cursor)
        found += items
    return found


def list_page(api: Api, cursor: str) -> tuple[list[Job], str | None]:
    """The jobs of one page, and the cursor of the next."""
    given = {"cursor": cursor} if cursor else {}
    page = api.client.get("/v1/jobs", params={"limit": 200, **given}).json()
    return page["items"], page["cursor"]


def select_option(name: str, value: str) -> Callable[[Page], object]:
    return lambda page: page.locator(f"select[name={name}]").select_option(value)


FILTERS: dict[str, tuple[Callable[[Page], object], str, Callable[[Job], bool]]] = {
    "status": (
        lambda page: page.get_by_text("Failed", exact=False).first.click(),
        "#/jobs?status=failed",
        lambda job: job["status"] == "failed",
    ),
    "kind": (
        select_option("kind", "certificate"),
        "#/jobs?kind=certificate",
        lambda job: job["kind"] == "certificate",
    ),
    "method": (select_option("method", "fgsm"), "#/jobs?method=fgsm", lambda job: job["method"] == "fgsm"),
    "predictions": (
        select_option("method", "predict"),
        "#/jobs?method=predict",
        lambda job: job["kind"] == "prediction",
    ),
    "model": (
        select_option("model", MODELS[1]),
        f"#/jobs?model={MODELS[1]}",
        lambda job: job["model"]["id"] == MODELS[1],
    ),
    "time": (select_option("last", "1h"), "#/jobs?last=1h", lambda job: True),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filter_is_kept_in_the_address_and_shows_only_matching_jobs(
    page: Page, jobs: list[Job], name: str
) -> None:
    act, address, matches = FILTERS[name]
    wanted = [job["id"] for job in jobs if matches(job)]
    page.goto("/#/jobs")
    expect(page.locator("tbody tr")).to_have_count(50)
    act(page)
    expect(page).to_have_url(f"/{address}")
    expect_rows(page, wanted[:50])
    page.reload()
    expect_rows(page, wanted[:50])
    page.go_back()
    expect(page).to_have_url("/#/jobs")
    expect(page.locator("tbody tr").first).to_have_attribute("data-id", jobs[0]["id"])


def test_filters_combine_and_can_be_cleared(page: Page, jobs: list[Job]) -> None:
    page.goto(f"/#/jobs?status=succeeded&method=pgd&model={MODELS[0]}")
    wanted = [
        job["id"]
        for job in jobs
        if (job["status"], job["method"], job["model"]["id"]) == ("succeeded", "pgd", MODELS[0])
    ]
    expect_rows(page, wanted)
    page.get_by_role("link", name="Clear filters").click()
    expect(page).to_have_url("/#/jobs")
    expect(page.locator("tbody tr")).to_have_count(50)
    expect(page.get_by_role("link", name="Clear filters")).to_be_hidden()


def test_custom_time_range_filters_jobs(page: Page, jobs: list[Job]) -> None:
    times = sorted(datetime.fromisoformat(job["created_at"]) for job in jobs)
    since = times[0] + timedelta(seconds=(times[-1] - times[0]).total_seconds() / 2)
    since = since.replace(microsecond=0) + timedelta(seconds=1)
    until = datetime.now(UTC) + timedelta(days=1)
    wanted = [job["id"] for job in jobs if datetime.fromisoformat(job["created_at"]) >= since]
    assert 0 < len(wanted) < len(jobs)
    page.goto("/#/jobs")
    page.locator("select[name=last]").select_option("custom")
    page.get_by_label("From", exact=True).fill(f"{since:%Y-%m-%dT%H:%M:%S}")
    page.get_by_label("To", exact=True).fill(f"{until:%Y-%m-%dT%H:%M:%S}")
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile(rf"since={since:%Y-%m-%dT%H}%3A.*&until="))
    expect_rows(page, wanted[:50])


def test_status_counts_cover_all_jobs_whatever_the_filter(page: Page, jobs: list[Job]) -> None:
    page.goto("/#/jobs?kind=prediction")
    failed = sum(job["status"] == "failed" for job in jobs)
    expect(page.locator("[data-count=failed]")).to_have_text(str(failed))
    expect(page.locator("[data-count=all]")).to_have_text("200")


def test_pages_are_turned_by_buttons_and_by_the_browser_history(page: Page, jobs: list[Job]) -> None:
    ids = [job["id"] for job in jobs]
    page.goto("/#/jobs?last=1h")
    first = page.locator("tbody tr").first
    for turn in (1, 2):
        page.get_by_role("button", name="Older").click()
        expect_rows(page, ids[50 * turn : 50 * turn + 50])
    page.get_by_role("button", name="Newer").click()
    expect(first).to_have_attribute("data-id", ids[50])
    page.go_back()
    expect(first).to_have_attribute("data-id", ids[100])
    page.get_by_role("button", name="Newest").click()
    expect(first).to_have_attribute("data-id", ids[0])
    expect(page.get_by_role("button", name="Newer")).to_be_disabled()


def test_invalid_cursor_in_the_address_shows_the_first_page(
    page: Page, jobs: list[Job], page_errors: PageErrors
) -> None:
    page_errors.expect("console: .* 422 ")
    page.goto("/#/jobs?status=failed&cursor=nonsense")
    newest = next(job["id"] for job in jobs if job["status"] == "failed")
    expect(page.locator("tbody tr").first).to_have_attribute("data-id", newest)
    expect(page).to_have_url("/#/jobs?status=failed")


def test_turning_a_page_makes_one_request(page: Page, jobs: list[Job]) -> None:
    requests: list[str] = []
    open_list(page)
    page.on("request", lambda request: "/v1/jobs?" in request.url and requests.append(request.url))
    for turn in (1, 2, 3):
        page.get_by_role("button", name="Older").click()
        expect_rows(page, [job["id"] for job in jobs[50 * turn : 50 * turn + 50]])
        assert len(requests) == turn
