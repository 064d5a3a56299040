"""Many jobs are canceled at once, and each is answered for."""

import threading
import time
from typing import Any

import pytest

from api_tests.support.fake_service import Api, Work, problem, succeed
from api_tests.support.wait import SECONDS


def cancel(api: Api, *jobs: str) -> list[dict[str, Any]]:
    response = api.client.post("/v1/jobs/cancel", json={"jobs": jobs})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert list(response.json()) == ["items"]
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def test_each_is_answered_for_and_none_spoils_the_others(api: Api) -> None:
    done, nobody = api.job()["id"], "0" * 32
    with api.worker.resting():
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


def test_a_running_job_is_told(api: Api) -> None:
    go_on = threading.Event()

    def slowly(work: Work) -> None:
        go_on.wait(SECONDS)
        succeed(work)

    with api.worker.doing(slowly):
        path = api.submit(wait=None).json()["links"]["self"]
        while api.client.get(path).json()["status"] == "queued":
            time.sleep(0.01)
        [item] = cancel(api, path.rpartition("/")[2])
        go_on.set()
        job = api.client.get(path, headers={"Prefer": "wait=10"}).json()
    assert (item["status"], item["code"]) == ("running", None)
    assert job["status"] == "canceled"


def test_two_hundred_are_one_call_of_the_ledger(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = api.ledger.scripts.run
    monkeypatch.setattr(api.ledger.scripts, "run", lambda name, *args: calls.append(name) or run(name, *args))
    jobs = [api.job()["id"], *(f"{number:032x}" for number in range(199))]
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
def test_what_is_no_list_of_ids_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    problem(api.client.post("/v1/jobs/cancel", json=body), 422, "invalid_parameter", field)


def test_half_a_character_is_refused_rather_than_stumbled_over(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    response = api.client.post("/v1/jobs/cancel", content=b'{"jobs": ["\\ud800"]}', headers=headers)
    assert response.status_code in (400, 422)


def test_only_json_will_do(api: Api) -> None:
    response = api.client.post("/v1/jobs/cancel", files={"jobs": ("a", b"x")})
    problem(response, 415, "unsupported_media_type")
    assert response.headers["accept"] == "application/json"
    headers = {"Content-Type": "application/json"}
    problem(api.client.post("/v1/jobs/cancel", content=b"{", headers=headers), 400, "invalid_body")
