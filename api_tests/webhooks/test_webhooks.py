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

from api_tests.support.fake_service import Api, problem, serving
from api_tests.support.own_models import SAID, linear_onnx
from api_tests.support.ports import reserved
from api_tests.support.wait import wait_until
from api_tests.support.webhook_receiver import Receiver, answering
from service.auth.caller import Caller
from touchstone.ledger.webhooks import dispatcher, signatures
from touchstone.ledger.webhooks.endpoints import MOST_ENDPOINTS
from touchstone.settings import Settings


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service that may send to loopback."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    settings = Settings(
        home=tmp_path_factory.mktemp("api"), redis_url=valkey_server, outgoing_allow="127.0.0.1"
    )
    with pytest.MonkeyPatch.context() as patch, serving(settings) as api:
        patch.setattr(dispatcher, "PAUSE_SECONDS", 0.02)
        yield api


@pytest.fixture
def endpoint(api: Api, receiver: Receiver) -> Iterator[dict[str, Any]]:
    made = created(api, url=receiver.url)
    yield made
    api.client.delete(f"/v1/webhooks/{made['id']}")


def created(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.client.post("/v1/webhooks", json=fields)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/webhooks/{made['id']}"
    assert response.headers["cache-control"] == "no-store"
    return made


def settled(api: Api, **filters: str) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        answer = api.client.get("/v1/webhooks/deliveries", params=filters)
        found: list[dict[str, Any]] = answer.json()["items"]
        return found if all(one["status"] != "pending" for one in found) else []

    return wait_until(look)


def test_a_submission_s_webhook_is_told_and_verified(api: Api, receiver: Receiver) -> None:
    drawn = api.client.post("/v1/webhooks/secret")
    assert drawn.headers["cache-control"] == "no-store"
    job = api.job(webhook=receiver.url)
    told = receiver.wait()[0].verified(drawn.json()["secret"])
    assert told == {"type": "job.succeeded", "timestamp": job["finished_at"], "data": job}
    [delivery] = settled(api, job=job["id"])
    assert 'touchstone_deliveries{status="delivered"} 1.0' in api.client.get("/metrics").text
    assert (delivery["endpoint"], delivery["url"], delivery["next_attempt_at"]) == (None, receiver.url, None)
    assert api.client.get(f"/v1/webhooks/deliveries/{delivery['id']}").json() == delivery
    assert delivery["id"] == receiver.messages[0].id


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/certificates/smoothing"])
def test_every_submission_takes_a_webhook(api: Api, receiver: Receiver, path: str) -> None:
    api.job(path=path, webhook=receiver.url)
    receiver.wait()


def test_a_rerun_tells_whoever_the_job_told(api: Api, receiver: Receiver) -> None:
    job = api.job(webhook=receiver.url)
    again = api.client.post(f"/v1/jobs/{job['id']}/rerun", headers={"Prefer": "wait=10"}).json()
    found = receiver.wait(2)
    secret = api.client.post("/v1/webhooks/secret").json()["secret"]
    assert secret.startswith("whsec_")
    assert {settled(api, job=one)[0]["id"] for one in (job["id"], again["id"])} == {one.id for one in found}


def test_a_registration_tells_of_its_end(api: Api, receiver: Receiver) -> None:
    files: dict[str, Any] = {
        "file": linear_onnx(),
        "manifest": (None, json.dumps(SAID)),
        "webhook": (None, receiver.url),
    }
    response = api.client.post("/v1/models", files=files, headers={"Prefer": "wait=10"})
    assert response.status_code == 200, response.text
    receiver.wait()
    files["webhook"] = (None, "ftp://a.example/")
    problem(api.client.post("/v1/models", files=files), 422, "address_refused", "webhook")


def test_an_endpoint_lives_through_its_routes(api: Api, receiver: Receiver) -> None:
    made = created(api, url=receiver.url, events=["job.failed", "job.failed"], description="ci")
    shown = {name: value for name, value in made.items() if name != "secret"}
    here = f"/v1/webhooks/{made['id']}"
    assert (made["events"], made["description"], made["disabled_at"]) == (["job.failed"], "ci", None)
    assert api.client.get(here).json() == shown
    assert api.client.get("/v1/webhooks").json() == {"items": [shown], "cursor": None}
    ping = api.client.post(f"{here}/ping")
    assert ping.status_code == 202
    assert receiver.wait()[0].verified(made["secret"])["type"] == "webhook.ping"
    assert [one["id"] for one in settled(api, endpoint=made["id"])] == [ping.json()["id"]]
    fresh = api.client.post(f"{here}/rotate").json()["secret"]
    api.client.post(f"{here}/ping")
    message = receiver.wait(2)[1]
    assert message.verified(fresh) == message.verified(made["secret"])
    assert api.client.delete(here).status_code == 204
    for verb, path in (("GET", here), ("DELETE", here), ("POST", f"{here}/ping"), ("POST", f"{here}/rotate")):
        problem(api.client.request(verb, path), 404, "unknown_webhook")


def test_a_secret_is_shown_once_and_never_again(
    api: Api, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    secret = signatures.new_secret()
    made = created(api, url=receiver.url, secret=secret)
    assert made["secret"] == secret
    api.job()
    assert receiver.wait()[0].verified(secret)
    paths = ("", f"/{made['id']}", "/deliveries", f"/deliveries/{receiver.messages[0].id}")
    seen = [api.client.get(f"/v1/webhooks{path}").text for path in paths]
    api.client.delete(f"/v1/webhooks/{made['id']}")
    assert not [text for text in [*seen, caplog.text] if secret.removeprefix("whsec_") in text]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_MTIz", "x" * 40, "whsec_" + "é" * 40, 7])
def test_a_secret_has_its_form(api: Api, secret: Any) -> None:
    response = api.client.post("/v1/webhooks", json={"url": "https://a.example/", "secret": secret})
    problem(response, 422, "invalid_parameter", "secret")


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
def test_what_nothing_may_be_sent_to_is_refused_at_once(api: Api, url: str) -> None:
    problem(api.submit(webhook=url), 422, "address_refused", "webhook")
    problem(api.client.post("/v1/webhooks", json={"url": url}), 422, "address_refused", "url")


def test_without_permits_neither_http_nor_loopback_is_taken(settings: Settings) -> None:
    with serving(settings) as api:
        for url in ("http://a.example/", "https://localhost/", "https://127.1/", "https://a.localhost/"):
            problem(api.submit(webhook=url), 422, "address_refused", "webhook")
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
def test_a_bad_endpoint_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    problem(api.client.post("/v1/webhooks", json=body), 422, "invalid_parameter", field)


def test_a_tenant_has_no_more_endpoints_than_may_be(api: Api) -> None:
    made = [created(api, url="https://a.example/", events=["job.failed"]) for _ in range(MOST_ENDPOINTS)]
    response = api.client.post("/v1/webhooks", json={"url": "https://a.example/"})
    problem(response, 409, "webhook_conflict")
    first = api.client.get("/v1/webhooks?limit=15").json()
    rest = api.client.get("/v1/webhooks", params={"cursor": first["cursor"]}).json()
    assert {one["id"] for one in first["items"] + rest["items"]} == {one["id"] for one in made}
    for one in made:
        api.client.delete(f"/v1/webhooks/{one['id']}")


def test_a_delivery_is_replayed(api: Api, receiver: Receiver, endpoint: dict[str, Any]) -> None:
    receiver.plan = [answering(410)]
    api.job()
    [delivery] = settled(api, endpoint=endpoint["id"])
    path = f"/v1/webhooks/deliveries/{delivery['id']}/replay"
    problem(api.client.post(path), 409, "webhook_conflict")
    api.client.post(f"/v1/webhooks/{endpoint['id']}/ping")
    settled(api, endpoint=endpoint["id"])
    replayed = api.client.post(path)
    assert (replayed.status_code, replayed.json()["id"]) == (202, delivery["id"])
    assert receiver.wait(3)[2].id == delivery["id"]
    assert settled(api, endpoint=endpoint["id"], status="delivered")[1]["attempts"][0]["status"] == 410


def test_another_tenant_sees_nothing(
    api: Api, receiver: Receiver, endpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.job()
    [delivery] = settled(api, endpoint=endpoint["id"])
    there, one = f"/v1/webhooks/{endpoint['id']}", f"/v1/webhooks/deliveries/{delivery['id']}"
    monkeypatch.setattr("service.auth.caller.EVERYBODY", Caller("other", frozenset(("read", "submit"))))
    for verb, path, code in (
        *(("GET", there, "unknown_webhook"), ("DELETE", there, "unknown_webhook")),
        *(("POST", f"{there}/{act}", "unknown_webhook") for act in ("rotate", "ping")),
        *(("GET", one, "unknown_delivery"), ("POST", f"{one}/replay", "unknown_delivery")),
    ):
        problem(api.client.request(verb, path), 404, code)
    for path in (
        "",
        "/deliveries",
        f"/deliveries?endpoint={endpoint['id']}",
        f"/deliveries?job={delivery['job']}",
    ):
        assert api.client.get(f"/v1/webhooks{path}").json() == {"items": [], "cursor": None}
    assert len(receiver.messages) == 1


def test_what_is_no_id_is_unknown(api: Api) -> None:
    for name in ("deliveries", "x", "%00", "wh_" + "0" * 24, "é" * 100):
        problem(api.client.delete(f"/v1/webhooks/{name}"), 404, "unknown_webhook")
        problem(api.client.get(f"/v1/webhooks/deliveries/{name}"), 404, "unknown_delivery")


def test_the_document_s_receiver_takes_what_is_sent(api: Api, tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    secret = api.client.post("/v1/webhooks/secret").json()["secret"]
    with reserved() as port, started(code, PORT=str(port), WEBHOOK_SECRET=secret) as receiver:
        try:
            wait_until(lambda: _is_listening(port))
            job = api.job(webhook=f"http://127.0.0.1:{port}/")
            assert receiver.stdout is not None
            line = receiver.stdout.readline().decode().split()
            assert line[1:] == ["job.succeeded", job["links"]["self"]]
            assert httpx2.post(f"http://127.0.0.1:{port}/", content=b"{}").status_code == 400
        finally:
            receiver.kill()


def started(code: str, **environment: str) -> subprocess.Popen[bytes]:
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
