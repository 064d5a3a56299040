"""Without keys: whoever is not of this machine is refused, be it by a name that leads here or from a page."""

from __future__ import annotations

import pytest

from api_tests.support.fake_service import Api, assert_problem, run_service
from touchstone.settings import Settings


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost", "LOCALHOST:{port}", "a.localhost", "[::1]:{port}"]
)
def test_loopback_host_names_are_answered(api: Api, host: str) -> None:
    answer = api.client.get("/v1/jobs", headers={"Host": host.format(port=api.port)})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/jobs", "/openapi.json", "/nothing"])
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[", ""),
        *("[::1%25evil.example]", "[::1%evil]", "local%68ost", "%6cocalhost", "a%00.localhost"),
    ],
)
def test_foreign_host_name_is_refused(api: Api, host: str, path: str) -> None:
    assert_problem(api.client.get(path, headers={"Host": host}), 403, "host_refused")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://["},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/jobs/cancel"), ("DELETE", "/v1/models/x"), ("PUT", "/")]
)
def test_cross_site_request_is_refused(api: Api, method: str, path: str, headers: dict[str, str]) -> None:
    assert_problem(api.client.request(method, path, headers=headers), 403, "cross_site_refused")


def test_same_origin_request_of_the_dashboard_is_answered(api: Api) -> None:
    own = {"Origin": api.origin, "Sec-Fetch-Site": "same-origin"}
    answer = api.client.post("/v1/jobs/cancel", json={"jobs": ["x"]}, headers=own)
    assert answer.status_code == 200


def test_allowed_host_name_is_answered(settings: Settings) -> None:
    with run_service(settings.model_copy(update={"allowed_hosts": "robust.example, other.example"})) as api:
        through = {"Host": "Robust.example", "Origin": "https://robust.example"}
        assert api.client.post("/v1/jobs/cancel", json={"jobs": ["x"]}, headers=through).status_code == 200
        behind = {"Origin": "https://other.example"}
        assert api.client.post("/v1/jobs/cancel", json={"jobs": ["x"]}, headers=behind).status_code == 200
        assert_problem(api.client.get("/v1/jobs", headers={"Host": "third.example"}), 403, "host_refused")


def test_host_name_is_not_checked_where_keys_are_required(settings: Settings) -> None:
    with run_service(settings.model_copy(update={"require_keys": True})) as api:
        assert_problem(api.client.get("/v1/jobs", headers={"Host": "robust.example"}), 401, "key_missing")
        assert api.client.get("/", headers={"Host": "robust.example"}).status_code == 200
