"""Jobs over HTTP: listed, read, waited for, canceled, run again, deleted."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api_tests.support.fake_service import Api, Work, fail, problem, some_model, succeed
from api_tests.support.wait import SECONDS
from touchstone.errors import LedgerUnavailable


def test_jobs_are_listed_newest_first_and_filtered(api: Api) -> None:
    old, new = api.job(), api.job(path="/v1/attacks/fgsm")
    with api.worker.doing(fail):
        failed = api.job()
    ids = [job["id"] for job in api.client.get("/v1/jobs", params={"limit": 3}).json()["items"]]
    assert ids == [failed["id"], new["id"], old["id"]]

    def first(**filters: str) -> str:
        items = api.client.get("/v1/jobs", params=filters).json()["items"]
        return items[0]["id"] if items else ""

    assert first(status="failed") == failed["id"]
    assert first(method="fgsm", kind="attack") == new["id"]
    assert first(status="succeeded", method="pgd", model=some_model().id) == old["id"]
    assert first(model="no-such-model") == ""


def test_a_link_to_the_next_page_keeps_the_filters(api: Api) -> None:
    for _ in range(2):
        api.job()
    response = api.client.get("/v1/jobs", params={"limit": 1, "method": "pgd"})
    assert "method=pgd" in response.headers["link"]
    assert (
        api.client.get(response.headers["link"].partition(">")[0][1:]).json()["items"][0]["method"] == "pgd"
    )


def test_a_job_is_not_sent_twice(api: Api) -> None:
    path = api.job()["links"]["self"]
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
    with api.worker.resting():
        path = api.submit(wait=None).json()["links"]["self"]
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            answer = pool.submit(api.client.get, path, headers={"Prefer": "wait=50"})
            time.sleep(0.2)
            assert not answer.done()
            api.worker._free.set()
            response = answer.result()
    assert response.json()["status"] == "succeeded"
    assert response.headers["preference-applied"] == "wait"
    assert time.monotonic() - began < 20


def test_long_poll_with_a_tag_returns_at_the_first_change(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        go_on.wait(SECONDS)
        succeed(work)

    with api.worker.doing(slowly):
        with api.worker.resting():
            response = api.submit(wait=None)
            path, tag = response.json()["links"]["self"], response.headers["etag"]
        changed = api.client.get(path, headers={"Prefer": "wait=50", "If-None-Match": tag})
        assert changed.json()["status"] == "running"
        again = {"Prefer": "wait=1", "If-None-Match": changed.headers["etag"]}
        assert api.client.get(path, headers=again).status_code == 304
        go_on.set()


def test_cancel_is_idempotent_and_conflicts_with_another_end(api: Api) -> None:
    with api.worker.resting():
        job = api.submit(wait=None).json()
        for _ in range(2):
            response = api.client.post(job["links"]["cancel"])
            assert response.status_code == 202
            assert response.json()["status"] == "canceled"
    done = api.job()
    response = api.client.post(done["links"]["cancel"])
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_a_rerun_is_a_new_job_of_the_same_submission(api: Api) -> None:
    job = api.job(seed=3, eps="4/255")
    response = api.client.post(f"{job['links']['self']}/rerun", headers={"Prefer": "wait=10"})
    again = response.json()
    assert response.status_code == 200
    assert again["rerun_of"] == job["id"] != again["id"]
    for name in ("kind", "method", "model", "image", "parameters", "seed", "execution"):
        assert again[name] == job[name]
    assert api.client.post(f"{job['links']['self']}/rerun").status_code == 202


def test_only_a_success_can_be_run_again(api: Api) -> None:
    with api.worker.doing(fail):
        failed = api.job()
    response = api.client.post(f"{failed['links']['self']}/rerun")
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_delete(api: Api) -> None:
    path = api.job()["links"]["self"]
    response = api.client.delete(path)
    assert (response.status_code, response.content) == (204, b"")
    assert api.client.get(path).status_code == 404
    assert api.client.delete(path).json()["code"] == "unknown_job"


def test_a_running_job_is_not_deleted(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        go_on.wait(SECONDS)
        succeed(work)

    with api.worker.doing(slowly):
        path = api.submit(wait=None).json()["links"]["self"]
        while api.client.get(path).json()["status"] == "queued":
            time.sleep(0.01)
        response = api.client.delete(path)
        go_on.set()
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")


def test_jobs_are_listed_by_when_they_were_accepted(api: Api) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(api.job())
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
    problem(other, 422, "invalid_cursor", "cursor")


@pytest.mark.parametrize(
    "moment", ["2026-11-22T10:00:00+01:00", "2026-11-22t09:00:00.000z", "9999-12-31T23:59:59Z"]
)
def test_a_time_may_be_written_as_the_rfc_permits(api: Api, moment: str) -> None:
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
def test_a_time_without_its_zone_is_refused(api: Api, moment: str) -> None:
    for name in ("since", "until"):
        problem(api.client.get("/v1/jobs", params={name: moment}), 422, "invalid_parameter", name)


def test_times_in_the_wrong_order_are_refused(api: Api) -> None:
    params = {"since": "2026-11-22T10:00:00+01:00", "until": "2026-11-22T08:59:59Z"}
    problem(api.client.get("/v1/jobs", params=params), 422, "invalid_parameter", "until")


def test_a_waiting_job_says_how_many_wait_before_it(api: Api) -> None:
    with api.worker.resting():
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


def test_a_job_is_shown_where_its_place_cannot_be_had(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: str) -> int:
        raise LedgerUnavailable("the ledger cannot be reached")

    with api.worker.resting():
        path = api.submit(wait=None).json()["links"]["self"]
        monkeypatch.setattr(api.ledger, "ahead", away)
        response = api.client.get(path)
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert "ahead" not in response.json()
