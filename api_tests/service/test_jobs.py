"""Jobs over HTTP: listed, read, waited for, canceled, run again, deleted."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api_tests.support.fake_service import Api, FakeJob, assert_problem, fail, sample_manifest, succeed
from api_tests.support.wait import TIMEOUT_SECONDS
from touchstone.errors import LedgerUnavailable


def test_jobs_are_listed_newest_first_and_filtered(api: Api) -> None:
    old, new = api.run_job(), api.run_job(path="/v1/attacks/fgsm")
    with api.worker.with_behavior(fail):
        failed = api.run_job()
    ids = [job["id"] for job in api.client.get("/v1/jobs", params={"limit": 3}).json()["items"]]
    assert ids == [failed["id"], new["id"], old["id"]]

    def first(**filters: str) -> str:
        items = api.client.get("/v1/jobs", params=filters).json()["items"]
        return items[0]["id"] if items else ""

    assert first(status="failed") == failed["id"]
    assert first(method="fgsm", kind="attack") == new["id"]
    assert first(status="succeeded", method="pgd", model=sample_manifest().id) == old["id"]
    assert first(model="no-such-model") == ""


def test_next_page_link_keeps_the_filters(api: Api) -> None:
    for _ in range(2):
        api.run_job()
    response = api.client.get("/v1/jobs", params={"limit": 1, "method": "pgd"})
    assert "method=pgd" in response.headers["link"]
    assert (
        api.client.get(response.headers["link"].partition(">")[0][1:]).json()["items"][0]["method"] == "pgd"
    )


def test_job_with_matching_etag_is_304(api: Api) -> None:
    path = api.run_job()["links"]["self"]
    first = api.client.get(path)
    again = api.client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    kept = ("etag", "cache-control", "vary")
    assert [again.headers[name] for name in kept] == [first.headers[name] for name in kept]
    assert (
        api.client.get(path, headers={"If-None-Match": '"other", W/' + first.headers["etag"]}).status_code
        == 304
    )
    assert api.client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_long_poll_returns_when_the_job_ends(api: Api) -> None:
    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]["self"]
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            answer = pool.submit(api.client.get, path, headers={"Prefer": "wait=50"})
            time.sleep(0.2)
            assert not answer.done()
            api.worker._resumed.set()
            response = answer.result()
    assert response.json()["status"] == "succeeded"
    assert response.headers["preference-applied"] == "wait"
    assert time.monotonic() - began < 20


def test_long_poll_with_an_etag_returns_at_the_first_change(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    with api.worker.with_behavior(slowly):
        with api.worker.pause():
            response = api.submit(wait=None)
            path, tag = response.json()["links"]["self"], response.headers["etag"]
        changed = api.client.get(path, headers={"Prefer": "wait=50", "If-None-Match": tag})
        assert changed.json()["status"] == "running"
        again = {"Prefer": "wait=1", "If-None-Match": changed.headers["etag"]}
        assert api.client.get(path, headers=again).status_code == 304
        go_on.set()


def test_cancel_is_idempotent_and_409_for_a_finished_job(api: Api) -> None:
    with api.worker.pause():
        job = api.submit(wait=None).json()
        for _ in range(2):
            response = api.client.post(job["links"]["cancel"])
            assert response.status_code == 202
            assert response.json()["status"] == "canceled"
    done = api.run_job()
    response = api.client.post(done["links"]["cancel"])
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_rerun_makes_a_new_job_of_the_same_submission(api: Api) -> None:
    job = api.run_job(seed=3, eps="4/255")
    response = api.client.post(f"{job['links']['self']}/rerun", headers={"Prefer": "wait=10"})
    again = response.json()
    assert response.status_code == 200
    assert again["rerun_of"] == job["id"] != again["id"]
    for name in ("kind", "method", "model", "image", "parameters", "seed", "execution"):
        assert again[name] == job[name]
    assert api.client.post(f"{job['links']['self']}/rerun").status_code == 202


def test_rerun_of_a_failed_job_is_409(api: Api) -> None:
    with api.worker.with_behavior(fail):
        failed = api.run_job()
    response = api.client.post(f"{failed['links']['self']}/rerun")
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_deleted_job_is_gone(api: Api) -> None:
    path = api.run_job()["links"]["self"]
    response = api.client.delete(path)
    assert (response.status_code, response.content) == (204, b"")
    assert api.client.get(path).status_code == 404
    assert api.client.delete(path).json()["code"] == "unknown_job"


def test_delete_of_a_running_job_is_409(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    with api.worker.with_behavior(slowly):
        path = api.submit(wait=None).json()["links"]["self"]
        while api.client.get(path).json()["status"] == "queued":
            time.sleep(0.01)
        response = api.client.delete(path)
        go_on.set()
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_jobs_are_filtered_by_the_time_they_were_accepted(api: Api) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(api.run_job())
        time.sleep(0.002)
    since, until = jobs[0]["created_at"], jobs[2]["created_at"]
    params = {"since": since, "until": until, "limit": 1, "method": "pgd"}
    first = api.client.get("/v1/jobs", params=params)
    second = api.client.get(first.headers["link"].partition(">")[0][1:])
    found = [response.json()["items"][0]["id"] for response in (first, second)]
    assert found == [jobs[1]["id"], jobs[0]["id"]]
    assert second.json()["cursor"] is None
    assert api.client.get("/v1/jobs", params={"since": until, "until": until}).json()["items"] == []
    assert api.client.get("/v1/jobs", params={"since": until}).json()["items"][0]["id"] == jobs[2]["id"]
    params |= {"since": until, "cursor": first.json()["cursor"]}
    other = api.client.get("/v1/jobs", params=params)
    assert_problem(other, 422, "invalid_cursor", "cursor")


@pytest.mark.parametrize(
    "moment", ["2026-11-22T10:00:00+01:00", "2026-11-22t09:00:00.000z", "9999-12-31T23:59:59Z"]
)
def test_time_filter_accepts_every_rfc_3339_form(api: Api, moment: str) -> None:
    for name in ("since", "until"):
        assert api.client.get("/v1/jobs", params={name: moment}).status_code == 200


@pytest.mark.parametrize(
    "moment",
    [
        "2026-11-22T09:30:00",
        "2026-11-22",
        "1700000000",
        "",
        "now",
        "2026-13-22T09:30:00Z",
        "2026-11-22T09:30:00 01:00",
    ],
)
def test_time_filter_without_time_zone_is_422(api: Api, moment: str) -> None:
    for name in ("since", "until"):
        assert_problem(api.client.get("/v1/jobs", params={name: moment}), 422, "invalid_parameter", name)


def test_time_filter_with_until_before_since_is_422(api: Api) -> None:
    params = {"since": "2026-11-22T10:00:00+01:00", "until": "2026-11-22T08:59:59Z"}
    assert_problem(api.client.get("/v1/jobs", params=params), 422, "invalid_parameter", "until")


def test_queued_job_shows_how_many_jobs_are_ahead(api: Api) -> None:
    with api.worker.pause():
        jobs = [api.submit(wait=None) for _ in range(3)]
        assert all("ahead" not in job.json() for job in jobs)
        paths = [job.json()["links"]["self"] for job in jobs]
        assert [api.client.get(path).json()["ahead"] for path in paths] == [0, 1, 2]
        tag = jobs[2].headers["etag"]
        api.client.post(jobs[0].json()["links"]["cancel"])
        last = api.client.get(paths[2], headers={"Prefer": "wait=0"})
        assert (last.json()["ahead"], last.headers["etag"]) == (1, tag)
        assert api.client.get(paths[2], headers={"If-None-Match": tag}).status_code == 304
        assert "ahead" not in api.client.get(paths[0]).json()
        assert all("ahead" not in job for job in api.client.get("/v1/jobs").json()["items"])
    assert "ahead" not in api.client.get(paths[2], headers={"Prefer": "wait=10"}).json()


def test_queued_job_is_shown_when_its_position_cannot_be_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> int:
        raise LedgerUnavailable("the ledger cannot be reached")

    with api.worker.pause():
        path = api.submit(wait=None).json()["links"]["self"]
        monkeypatch.setattr(api.ledger, "count_ahead", away)
        response = api.client.get(path)
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert "ahead" not in response.json()
