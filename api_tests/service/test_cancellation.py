"""Many jobs are canceled at once, and each is answered for."""

import threading
import time
from typing import Any

import pytest

from api_tests.support.fake_service import Api, FakeJob, assert_problem, succeed
from api_tests.support.wait import TIMEOUT_SECONDS


def cancel(api: Api, *jobs: str) -> list[dict[str, Any]]:
    response = api.client.post("/v1/jobs/cancel", json={"jobs": jobs})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert list(response.json()) == ["items"]
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def test_bulk_cancel_reports_each_job_and_cancels_the_others_despite_failures(api: Api) -> None:
    done, nobody = api.run_job()["id"], "0" * 32
    with api.worker.pause():
        waiting = [api.submit(wait=None).json()["id"] for _ in range(2)]
        items = cancel(api, waiting[0], nobody, done, "no id at all", waiting[1], waiting[0])
    canceled = {"status": "canceled", "code": None, "detail": None}
    unknown = {"status": None, "code": "unknown_job"}
    assert items == [
        {"id": waiting[0], **canceled},
        {"id": nobody, **unknown, "detail": f"there is no job '{nobody}'"},
        {
            "id": done,
            "status": "succeeded",
            "code": "job_conflict",
            "detail": "the job has already succeeded; only a waiting or running job can be canceled",
        },
        {"id": "no id at all", **unknown, "detail": "there is no job 'no id at all'"},
        {"id": waiting[1], **canceled},
        {"id": waiting[0], **canceled},
    ]
    for job in waiting:
        assert api.client.get(f"/v1/jobs/{job}").json()["status"] == "canceled"


def test_bulk_cancel_cancels_a_running_job(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: FakeJob) -> None:
        go_on.wait(TIMEOUT_SECONDS)
        succeed(work)

    with api.worker.with_behavior(slowly):
        path = api.submit(wait=None).json()["links"]["self"]
        while api.client.get(path).json()["status"] == "queued":
            time.sleep(0.01)
        [item] = cancel(api, path.rpartition("/")[2])
        go_on.set()
        job = api.client.get(path, headers={"Prefer": "wait=10"}).json()
    assert (item["status"], item["code"]) == ("running", None)
    assert job["status"] == "canceled"


def test_bulk_cancel_of_two_hundred_jobs_is_one_ledger_call(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = api.ledger.scripts.run
    monkeypatch.setattr(api.ledger.scripts, "run", lambda name, *args: calls.append(name) or run(name, *args))
    jobs = [api.run_job()["id"], *(f"{number:032x}" for number in range(199))]
    assert len(cancel(api, *jobs)) == 200
    assert calls.count("jobs/cancel") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "jobs"),
        ({"jobs": []}, "jobs"),
        ({"jobs": ["x"] * 201}, "jobs"),
        ({"jobs": "x"}, "jobs"),
        ({"jobs": [1]}, "jobs.0"),
        ({"jobs": ["x" * 65]}, "jobs.0"),
        ({"jobs": ["x"], "job": "y"}, "job"),
    ],
)
def test_bulk_cancel_without_a_valid_list_of_ids_is_422(api: Api, body: dict[str, Any], field: str) -> None:
    assert_problem(api.client.post("/v1/jobs/cancel", json=body), 422, "invalid_parameter", field)


def test_lone_surrogate_in_a_job_id_is_refused_without_a_crash(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    response = api.client.post("/v1/jobs/cancel", content=b'{"jobs": ["\\ud800"]}', headers=headers)
    assert response.status_code in (400, 422)


def test_bulk_cancel_accepts_only_json(api: Api) -> None:
    response = api.client.post("/v1/jobs/cancel", files={"jobs": ("a", b"x")})
    assert_problem(response, 415, "unsupported_media_type")
    assert response.headers["accept"] == "application/json"
    headers = {"Content-Type": "application/json"}
    assert_problem(api.client.post("/v1/jobs/cancel", content=b"{", headers=headers), 400, "invalid_body")
