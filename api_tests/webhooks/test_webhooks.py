"""Webhooks over HTTP: endpoints, secrets, deliveries, and what no URL may be."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from api_tests.support.fake_service import Api, assert_problem, run_service
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx
from api_tests.support.ports import reserve_port
from api_tests.support.wait import wait_until
from api_tests.support.webhook_receiver import Receiver, reply_with
from service.auth.caller import Caller
from touchstone.ledger.webhooks import dispatcher, signatures
from touchstone.ledger.webhooks.endpoints import MAX_ENDPOINTS
from touchstone.settings import Settings


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that may send to loopback."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    settings = Settings(
        home=tmp_path_factory.mktemp("api"), redis_url=valkey_server, outgoing_allow="127.0.0.1"
    )
    with pytest.MonkeyPatch.context() as patch, run_service(settings) as api:
        patch.setattr(dispatcher, "POLL_SECONDS", 0.02)
        yield api


@pytest.fixture
def endpoint(api: Api, receiver: Receiver) -> Iterator[dict[str, Any]]:
    made = create_endpoint(api, url=receiver.url)
    yield made
    api.client.delete(f"/v1/webhooks/{made['id']}")


def create_endpoint(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.client.post("/v1/webhooks", json=fields)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/webhooks/{made['id']}"
    assert response.headers["cache-control"] == "no-store"
    return made


def wait_until_settled(api: Api, **filters: str) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        answer = api.client.get("/v1/webhooks/deliveries", params=filters)
        found: list[dict[str, Any]] = answer.json()["items"]
        return found if all(one["status"] != "pending" for one in found) else []

    return wait_until(look)


def test_submission_webhook_gets_a_verifiable_delivery(api: Api, receiver: Receiver) -> None:
    drawn = api.client.post("/v1/webhooks/secret")
    assert drawn.headers["cache-control"] == "no-store"
    job = api.run_job(webhook=receiver.url)
    told = receiver.wait()[0].verify(drawn.json()["secret"])
    assert told == {"type": "job.succeeded", "timestamp": job["finished_at"], "data": job}
    [delivery] = wait_until_settled(api, job=job["id"])
    assert 'touchstone_deliveries{status="delivered"} 1.0' in api.client.get("/metrics").text
    assert (delivery["endpoint"], delivery["url"], delivery["next_attempt_at"]) == (None, receiver.url, None)
    assert api.client.get(f"/v1/webhooks/deliveries/{delivery['id']}").json() == delivery
    assert delivery["id"] == receiver.messages[0].id


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/certificates/smoothing"])
def test_every_kind_of_submission_accepts_a_webhook(api: Api, receiver: Receiver, path: str) -> None:
    api.run_job(path=path, webhook=receiver.url)
    receiver.wait()


def test_rerun_delivers_to_the_webhook_of_the_job(api: Api, receiver: Receiver) -> None:
    job = api.run_job(webhook=receiver.url)
    again = api.client.post(f"/v1/jobs/{job['id']}/rerun", headers={"Prefer": "wait=10"}).json()
    found = receiver.wait(2)
    secret = api.client.post("/v1/webhooks/secret").json()["secret"]
    assert secret.startswith("whsec_")
    assert {wait_until_settled(api, job=one)[0]["id"] for one in (job["id"], again["id"])} == {
        one.id for one in found
    }


def test_registration_accepts_a_webhook_and_delivers_its_end(api: Api, receiver: Receiver) -> None:
    files: dict[str, Any] = {
        "file": linear_onnx(),
        "manifest": (None, json.dumps(REGISTRATION_FIELDS)),
        "webhook": (None, receiver.url),
    }
    response = api.client.post("/v1/models", files=files, headers={"Prefer": "wait=10"})
    assert response.status_code == 200, response.text
    receiver.wait()
    files["webhook"] = (None, "ftp://a.example/")
    assert_problem(api.client.post("/v1/models", files=files), 422, "address_refused", "webhook")


def test_endpoint_is_created_listed_pinged_rotated_and_deleted(api: Api, receiver: Receiver) -> None:
    made = create_endpoint(api, url=receiver.url, events=["job.failed", "job.failed"], description="ci")
    shown = {name: value for name, value in made.items() if name != "secret"}
    here = f"/v1/webhooks/{made['id']}"
    assert (made["events"], made["description"], made["disabled_at"]) == (["job.failed"], "ci", None)
    assert api.client.get(here).json() == shown
    assert api.client.get("/v1/webhooks").json() == {"items": [shown], "cursor": None}
    ping = api.client.post(f"{here}/ping")
    assert ping.status_code == 202
    assert receiver.wait()[0].verify(made["secret"])["type"] == "webhook.ping"
    assert [one["id"] for one in wait_until_settled(api, endpoint=made["id"])] == [ping.json()["id"]]
    fresh = api.client.post(f"{here}/rotate").json()["secret"]
    api.client.post(f"{here}/ping")
    message = receiver.wait(2)[1]
    assert message.verify(fresh) == message.verify(made["secret"])
    assert api.client.delete(here).status_code == 204
    for verb, path in (("GET", here), ("DELETE", here), ("POST", f"{here}/ping"), ("POST", f"{here}/rotate")):
        assert_problem(api.client.request(verb, path), 404, "unknown_webhook")


def test_webhook_secret_is_shown_only_once(
    api: Api, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    secret = signatures.new_secret()
    made = create_endpoint(api, url=receiver.url, secret=secret)
    assert made["secret"] == secret
    api.run_job()
    assert receiver.wait()[0].verify(secret)
    paths = ("", f"/{made['id']}", "/deliveries", f"/deliveries/{receiver.messages[0].id}")
    seen = [api.client.get(f"/v1/webhooks{path}").text for path in paths]
    api.client.delete(f"/v1/webhooks/{made['id']}")
    assert not [text for text in [*seen, caplog.text] if secret.removeprefix("whsec_") in text]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_MTIz", "x" * 40, "whsec_" + "é" * 40, 7])
def test_malformed_webhook_secret_is_422(api: Api, secret: Any) -> None:
    response = api.client.post("/v1/webhooks", json={"url": "https://a.example/", "secret": secret})
    assert_problem(response, 422, "invalid_parameter", "secret")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://a.example/",
            "a.example",
            "https://u:p@a.example/",
            "https://a.example/#x",
            "https://a.example:0/",
        ),
        *(
            "https://10.0.0.1/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
        ),
        *("https://192.168.1/", "https://0xa000001/", "https://167772161/", "http://93.184.216.34/"),
        *("https://localhost.:1/x\n", "https://2130706434/"),
    ],
)
def test_forbidden_webhook_url_is_refused_at_once(api: Api, url: str) -> None:
    assert_problem(api.submit(webhook=url), 422, "address_refused", "webhook")
    assert_problem(api.client.post("/v1/webhooks", json={"url": url}), 422, "address_refused", "url")


def test_http_and_loopback_webhooks_are_refused_by_default(settings: Settings) -> None:
    with run_service(settings) as api:
        for url in ("http://a.example/", "https://localhost/", "https://127.1/", "https://a.localhost/"):
            assert_problem(api.submit(webhook=url), 422, "address_refused", "webhook")
        assert api.submit(webhook="https://a.example/hook").status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "https://a.example/", "events": []}, "events"),
        ({"url": "https://a.example/", "events": ["job.started"]}, "events.0"),
        ({"url": "https://a.example/", "colour": "red"}, "colour"),
        ({"url": "https://a.example/", "description": "x" * 201}, "description"),
    ],
)
def test_invalid_endpoint_is_422(api: Api, body: dict[str, Any], field: str) -> None:
    assert_problem(api.client.post("/v1/webhooks", json=body), 422, "invalid_parameter", field)


def test_number_of_endpoints_of_a_tenant_is_limited(api: Api) -> None:
    made = [
        create_endpoint(api, url="https://a.example/", events=["job.failed"]) for _ in range(MAX_ENDPOINTS)
    ]
    response = api.client.post("/v1/webhooks", json={"url": "https://a.example/"})
    assert_problem(response, 409, "webhook_conflict")
    first = api.client.get("/v1/webhooks?limit=15").json()
    rest = api.client.get("/v1/webhooks", params={"cursor": first["cursor"]}).json()
    assert {one["id"] for one in first["items"] + rest["items"]} == {one["id"] for one in made}
    for one in made:
        api.client.delete(f"/v1/webhooks/{one['id']}")


def test_failed_delivery_is_replayed_once_its_endpoint_is_enabled(
    api: Api, receiver: Receiver, endpoint: dict[str, Any]
) -> None:
    receiver.next_actions = [reply_with(410)]
    api.run_job()
    [delivery] = wait_until_settled(api, endpoint=endpoint["id"])
    path = f"/v1/webhooks/deliveries/{delivery['id']}/replay"
    assert_problem(api.client.post(path), 409, "webhook_conflict")
    api.client.post(f"/v1/webhooks/{endpoint['id']}/ping")
    wait_until_settled(api, endpoint=endpoint["id"])
    replayed = api.client.post(path)
    assert (replayed.status_code, replayed.json()["id"]) == (202, delivery["id"])
    assert receiver.wait(3)[2].id == delivery["id"]
    _, again = wait_until_settled(api, endpoint=endpoint["id"])
    assert (again["status"], again["attempts"][0]["status"]) == ("delivered", 410)


def test_endpoints_and_deliveries_are_hidden_from_other_tenants(
    api: Api, receiver: Receiver, endpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.run_job()
    [delivery] = wait_until_settled(api, endpoint=endpoint["id"])
    there, one = f"/v1/webhooks/{endpoint['id']}", f"/v1/webhooks/deliveries/{delivery['id']}"
    monkeypatch.setattr("service.auth.permissions.ANONYMOUS", Caller("other", frozenset(("read", "submit"))))
    for verb, path, code in (
        *(("GET", there, "unknown_webhook"), ("DELETE", there, "unknown_webhook")),
        *(("POST", f"{there}/{act}", "unknown_webhook") for act in ("rotate", "ping")),
        *(("GET", one, "unknown_delivery"), ("POST", f"{one}/replay", "unknown_delivery")),
    ):
        assert_problem(api.client.request(verb, path), 404, code)
    for path in (
        "",
        "/deliveries",
        f"/deliveries?endpoint={endpoint['id']}",
        f"/deliveries?job={delivery['job']}",
    ):
        assert api.client.get(f"/v1/webhooks{path}").json() == {"items": [], "cursor": None}
    assert len(receiver.messages) == 1


def test_malformed_endpoint_or_delivery_id_is_404(api: Api) -> None:
    for name in ("deliveries", "x", "%00", "wh_" + "0" * 24, "é" * 100):
        assert_problem(api.client.delete(f"/v1/webhooks/{name}"), 404, "unknown_webhook")
        assert_problem(api.client.get(f"/v1/webhooks/deliveries/{name}"), 404, "unknown_delivery")


def test_receiver_example_in_docs_verifies_deliveries(api: Api, tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    secret = api.client.post("/v1/webhooks/secret").json()["secret"]
    with reserve_port() as port, run_program(code, PORT=str(port), WEBHOOK_SECRET=secret) as receiver:
        try:
            wait_until(lambda: _is_listening(port))
            job = api.run_job(webhook=f"http://127.0.0.1:{port}/")
            assert receiver.stdout is not None
            line = receiver.stdout.readline().decode().split()
            assert line[1:] == ["job.succeeded", job["links"]["self"]]
            assert httpx2.post(f"http://127.0.0.1:{port}/", content=b"{}").status_code == 400
        finally:
            receiver.kill()


def run_program(code: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
