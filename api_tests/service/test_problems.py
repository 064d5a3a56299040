"""Every failure is a problem with a status, and a fault of our own tells nothing of the inside."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api_tests.support.fake_service import Api, run_service
from service import problems
from service.app import create_app
from service.http.request_context import RequestContext
from service.state.metrics import RequestMetrics
from touchstone import errors
from touchstone.errors import CostTooHigh, Failure, QueueFull
from touchstone.settings import Settings


def all_failures(failure: type[Failure] = Failure) -> Iterator[type[Failure]]:
    yield failure
    for kind in failure.__subclasses__():
        yield from all_failures(kind)


def declared_failures() -> list[type[Failure]]:
    return [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Failure)]


def test_every_failure_has_exactly_one_status() -> None:
    assert set(problems.STATUSES) == set(declared_failures())
    assert set(all_failures()) >= set(declared_failures())
    assert all(400 <= status <= 599 for status in problems.STATUSES.values())


def test_error_codes_are_unique_words() -> None:
    codes = [kind.code for kind in declared_failures()]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


def test_only_server_side_failures_are_5xx() -> None:
    ours = {kind.code for kind, status in problems.STATUSES.items() if status >= 500}
    assert ours == {
        *("internal_error", "model_unusable", "out_of_memory", "worker_lost", "worker_stopping"),
        *("ledger_unavailable", "unreadable_job", "storage_full", "data_unavailable", "not_ready"),
        *("remote_unavailable", "remote_answer"),
    }


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(RequestContext, metrics=RequestMetrics())

    @app.get("/fail/{name}")
    async def fail(name: str) -> None:
        known = {kind.code: kind for kind in declared_failures()}
        raise known[name]("what was wrong", field="eps", more=1)

    @app.get("/crash")
    async def crash() -> None:
        raise ValueError("secret of the inside")

    @app.get("/full")
    async def full() -> None:
        raise QueueFull("too many wait", retry_after=7)

    @app.get("/clash")
    async def clash() -> None:
        raise CostTooHigh("too much", status=200, code="x", cost=5)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    return app


def test_each_failure_is_answered_as_a_problem(app: FastAPI) -> None:
    with TestClient(app) as client:
        for kind, status in problems.STATUSES.items():
            response = client.get(f"/fail/{kind.code}")
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
            assert ("retry-after" in response.headers) == (status in (429, 503, 507))
            assert response.json() == {
                "type": f"urn:touchstone:problem:{kind.code}",
                "title": problems.TITLES[kind.code],
                "status": status,
                "detail": "what was wrong",
                "instance": f"/fail/{kind.code}",
                "code": kind.code,
                "field": "eps",
                "more": 1,
            }


def test_unexpected_error_is_500_with_request_id_and_no_details(app: FastAPI) -> None:
    with TestClient(app) as client:
        response = client.get("/crash")
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "Error" not in response.text


def test_extra_fields_never_replace_standard_problem_members(app: FastAPI) -> None:
    with TestClient(app) as client:
        problem = client.get("/clash").json()
    assert (problem["status"], problem["code"], problem["cost"]) == (422, "cost_too_high", 5)


def test_queue_full_failure_sets_retry_after(app: FastAPI) -> None:
    with TestClient(app) as client:
        response = client.get("/full")
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


def test_fastapi_errors_are_answered_as_problems(app: FastAPI) -> None:
    with TestClient(app) as client:
        problem = client.get("/number/x").json()
        assert (problem["code"], problem["field"]) == ("invalid_parameter", "number")
        assert client.get("/nothing").json()["code"] == "not_found"
        response = client.post("/crash")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


def test_problem_instance_is_a_uri_reference(app: FastAPI) -> None:
    with TestClient(app) as client:
        instance = client.get("/%22%3Cé%00%20").json()["instance"]
    assert instance == "/%22%3C%C3%A9%00%20"


def test_submission_to_a_full_queue_is_429_with_retry_after(api: Api) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise QueueFull("20,000 jobs are waiting", retry_after=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.ledger, "accept", full)
        response = api.submit(wait=None)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["code"] == "queue_full"


def test_queue_limit_setting_makes_further_submissions_429(settings: Settings) -> None:
    with run_service(settings.model_copy(update={"queue_limit": 2})) as api, api.worker.pause():
        assert [api.submit(wait=None).status_code for _ in range(2)] == [202, 202]
        response = api.submit(wait=None)
    assert (response.status_code, response.json()["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_unreachable_ledger_is_503_at_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")
    app = create_app(settings, dispatch=lambda _: None)
    with TestClient(app, base_url="http://localhost") as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["ledger", "worker"])
        for path in ("/v1/jobs", f"/v1/jobs/{'0' * 32}"):
            response = client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "ledger_unavailable")
            assert response.headers["retry-after"]
        assert client.get("/v1/jobs/malformed").json()["code"] == "unknown_job"
        assert client.get("/healthz").status_code == 200
        assert "touchstone_ledger_up 0.0" in client.get("/metrics").text
        assert client.get("/v1/attacks").status_code == 200
